//! Builds one kernel's [`Program`]: numbers its registers, lays out its memory, and joins its labels and calls.

use std::collections::{BTreeSet, HashMap};

use crate::decode::{self, Form, Op, registers};
use crate::lex::{Statement, Token};
use crate::operand::{Names, Operand, Reader};
use crate::parse::{Declaration, Function, declaration};
use crate::program::{Constant, FRAME, Inst, Place, Program, Reg, SHARED_GAP, SHARED_START, Segment, Slot, Variable};

/// A branch whose label is not known yet: instruction, label, and the scopes it may lie in.
struct Fix {
    inst: usize,
    label: String,
    scopes: Vec<u32>,
    line: u32,
}

/// Where a device function's code and frame lie.
#[derive(Clone, Default)]
struct Frame {
    returns: Vec<(usize, usize)>,
    params: Vec<(usize, usize)>,
    back: Reg,
}

pub struct Builder<'a> {
    variables: &'a [Variable],
    module_shared: &'a [Declaration],
    scopes: Vec<HashMap<String, Reg>>,
    symbols: Vec<HashMap<String, Constant>>,
    /// Prefixes of the function's numbered registers.
    numbered: Vec<String>,
    scope_ids: Vec<u32>,
    next_scope: u32,
    constants: HashMap<Constant, Reg>,
    labels: HashMap<(u32, String), usize>,
    fixes: Vec<Fix>,
    frames: HashMap<String, Frame>,
    starts: HashMap<String, usize>,
    open_align: usize,
    shared_end: usize,
    program: Program,
}

impl Names for Builder<'_> {
    fn register(&mut self, name: &str) -> Option<Reg> {
        if let Some(r) = self.scopes.iter().rev().find_map(|s| s.get(name)) {
            return Some(*r);
        }
        if let Some(special) = special(name) {
            return Some(self.constant(special));
        }
        // Special registers that are not known, `%smid`, are no registers either.
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        if !self.numbered.iter().any(|p| p == prefix) {
            return None;
        }
        let r = self.fresh();
        // Numbered registers (`.reg .b32 %r<9>`) are not listed one by one; they belong to the function.
        self.scopes[0].insert(name.to_owned(), r);
        Some(r)
    }

    fn scratch(&mut self) -> Reg {
        self.fresh()
    }

    fn constant(&mut self, constant: Constant) -> Reg {
        if let Some(r) = self.constants.get(&constant) {
            return *r;
        }
        let r = self.fresh();
        self.constants.insert(constant, r);
        self.program.constants.push((r, constant));
        r
    }

    fn symbol(&mut self, name: &str, offset: i64) -> Option<Constant> {
        if let Some(found) = self.symbols.iter().rev().find_map(|s| s.get(name)) {
            return Some(match *found {
                Constant::Value(v) => Constant::Value(v.wrapping_add_signed(offset)),
                Constant::DynamicShared(o) => Constant::DynamicShared(o + offset),
                Constant::Variable(i, o) => Constant::Variable(i, o + offset),
                other => other,
            });
        }
        let i = self.variables.iter().position(|v| v.name == name)?;
        Some(Constant::Variable(i, offset))
    }
}

/// What a special register holds, if `name` is one.
fn special(name: &str) -> Option<Constant> {
    let (base, axis) = name.split_once('.').unwrap_or((name, "x"));
    let axis = ["x", "y", "z"].iter().position(|a| *a == axis)?;
    Some(match base {
        "%tid" => Constant::Tid(axis),
        "%ntid" => Constant::Ntid(axis),
        "%ctaid" => Constant::Ctaid(axis),
        "%nctaid" => Constant::Nctaid(axis),
        "%laneid" => Constant::Lane,
        "%warpid" => Constant::Warp,
        "%nwarpid" => Constant::Warps,
        "%lanemask_lt" => Constant::LanesBelow,
        "%lanemask_le" => Constant::LanesUpTo,
        "%lanemask_eq" => Constant::LaneBit,
        "%lanemask_ge" => Constant::LanesFrom,
        "%lanemask_gt" => Constant::LanesAbove,
        "%dynamic_smem_size" => Constant::DynamicSharedBytes,
        "WARP_SZ" => Constant::Value(32),
        _ => return None,
    })
}

impl<'a> Builder<'a> {
    pub fn new(name: &str, variables: &'a [Variable], module_shared: &'a [Declaration]) -> Builder<'a> {
        Builder {
            variables,
            module_shared,
            scopes: vec![HashMap::new()],
            symbols: vec![HashMap::new()],
            numbered: Vec::new(),
            scope_ids: Vec::new(),
            next_scope: 0,
            constants: HashMap::new(),
            labels: HashMap::new(),
            fixes: Vec::new(),
            frames: HashMap::new(),
            starts: HashMap::new(),
            open_align: 16,
            shared_end: SHARED_START,
            program: Program {
                name: name.to_owned(),
                insts: Vec::new(),
                start: 0,
                // Register 0 stays zero: what an instruction with fewer operands reads in their place.
                registers: 1,
                constants: Vec::new(),
                params: Vec::new(),
                param_bytes: 0,
                shared: Vec::new(),
                dynamic_at: 0,
                dynamic_name: "dynamic shared memory".into(),
                local_bytes: 0,
                guarded: Vec::new(),
                places: vec![Place::default()],
            },
        }
    }

    fn fresh(&mut self) -> Reg {
        self.program.registers += 1;
        (self.program.registers - 1) as Reg
    }

    fn local(&mut self, d: &Declaration) -> usize {
        let at = self.program.local_bytes.next_multiple_of(d.align);
        self.program.local_bytes = at + d.bytes;
        at
    }

    fn share(&mut self, d: &Declaration) -> Constant {
        if d.open {
            self.open_align = self.open_align.max(d.align);
            self.program.dynamic_name.clone_from(&d.name);
            return Constant::DynamicShared(0);
        }
        let at = self.shared_end.next_multiple_of(d.align);
        self.shared_end = at + d.bytes + SHARED_GAP;
        self.program.shared.push(Segment { name: d.name.clone(), start: at, bytes: d.bytes });
        Constant::Value(at as u64)
    }

    /// A declared variable of the innermost scope.
    fn declare(&mut self, d: &Declaration) {
        let symbol = match d.space.as_str() {
            "shared" => self.share(d),
            "local" => Constant::Value(self.local(d) as u64),
            _ => Constant::Value(FRAME + self.local(d) as u64),
        };
        self.bind(&d.name, symbol);
    }

    fn bind(&mut self, name: &str, symbol: Constant) {
        if let Some(scope) = self.symbols.last_mut() {
            scope.insert(name.to_owned(), symbol);
        }
    }

    /// The kernel and the functions it reaches, decoded in the text's order.
    pub fn program(mut self, functions: &[&Function]) -> Result<Program, String> {
        for d in self.module_shared {
            let symbol = self.share(d);
            self.bind(&d.name, symbol);
        }
        for f in functions.iter().filter(|f| !f.entry) {
            let mut frame = Frame { back: self.fresh(), ..Frame::default() };
            frame.returns = f.returns.iter().map(|d| (self.local(d), d.bytes)).collect();
            frame.params = f.params.iter().map(|d| (self.local(d), d.bytes)).collect();
            self.frames.insert(f.name.clone(), frame);
        }
        for f in functions {
            self.function(f)?;
        }
        for fix in std::mem::take(&mut self.fixes) {
            let target = fix.scopes.iter().rev().find_map(|s| self.labels.get(&(*s, fix.label.clone())));
            let target = target.or_else(|| self.starts.get(&fix.label));
            let target = *target.ok_or_else(|| format!("PTX line {}: no label '{}'", fix.line, fix.label))?;
            match &mut self.program.insts[fix.inst].op {
                Op::Branch { target: t } | Op::Call { target: t, .. } => *t = target,
                other => return Err(format!("PTX line {}: {other:?} jumps nowhere", fix.line)),
            }
        }
        self.guard();
        // Dynamic shared memory comes last, as the hardware lays it out, with its strictest alignment.
        self.program.dynamic_at = self.shared_end.next_multiple_of(self.open_align);
        Ok(self.program)
    }

    /// Has every instruction know which of its registers a wgmma uses asynchronously.
    fn guard(&mut self) {
        let used: BTreeSet<Reg> = self.program.insts.iter().flat_map(|i| registers::asynchronous(&i.op)).collect();
        if used.is_empty() {
            return;
        }
        for inst in &mut self.program.insts {
            let touched = registers::all(&inst.op).into_iter().chain(inst.guard.map(|(p, _)| p));
            inst.guarded = touched.filter(|r| used.contains(r)).collect();
        }
        self.program.guarded = used.into_iter().collect();
    }

    fn function(&mut self, f: &Function) -> Result<(), String> {
        let start = self.program.insts.len();
        self.starts.insert(f.name.clone(), start);
        self.scopes = vec![HashMap::new()];
        self.numbered.clear();
        self.symbols.truncate(1);
        self.symbols.push(HashMap::new());
        self.scope_ids = vec![self.next_scope];
        self.next_scope += 1;
        let back = if f.entry {
            self.program.start = start;
            for d in &f.params {
                let offset = self.program.param_bytes.next_multiple_of(d.align);
                self.program.param_bytes = offset + d.bytes;
                self.program.params.push(Slot { offset, bytes: d.bytes });
                self.bind(&d.name, Constant::Value(offset as u64));
            }
            None
        } else {
            let frame = self.frames[&f.name].clone();
            for (d, (at, _)) in f.returns.iter().chain(&f.params).zip(frame.returns.iter().chain(&frame.params)) {
                self.bind(&d.name, Constant::Value(FRAME + *at as u64));
            }
            Some(frame.back)
        };
        let mut place = 0;
        for statement in f.body {
            let here = |e: String| format!("PTX line {}: {e}", statement.line);
            self.statement(statement, &mut place, back).map_err(here)?;
        }
        // Falling off the end returns.
        let line = f.body.last().map_or(0, |s| s.line);
        let op = back.map_or(Op::Exit, |back| Op::Return { back });
        self.program.insts.push(Inst { guard: None, op, line, place, guarded: Vec::new() });
        Ok(())
    }

    fn statement(&mut self, s: &Statement, place: &mut u32, back: Option<Reg>) -> Result<(), String> {
        match s.tokens.as_slice() {
            [Token::Mark('{')] => {
                self.scopes.push(HashMap::new());
                self.symbols.push(HashMap::new());
                self.scope_ids.push(self.next_scope);
                self.next_scope += 1;
            }
            [Token::Mark('}')] => {
                self.scopes.pop();
                self.symbols.pop();
                self.scope_ids.pop();
            }
            [Token::Word(label), Token::Mark(':')] => {
                let scope = if label.starts_with('$') { self.scope_ids.first() } else { self.scope_ids.last() };
                let scope = *scope.ok_or("a label outside a function")?;
                self.labels.insert((scope, label.clone()), self.program.insts.len());
            }
            [Token::Word(w), rest @ ..] if w == ".loc" => self.place(rest, place),
            [Token::Word(w), rest @ ..] if w == ".reg" => self.registers(rest),
            [Token::Word(w), ..] if w.starts_with('.') => {
                if let Some(d) = declaration(&s.tokens)? {
                    self.declare(&d);
                }
            }
            tokens => self.instruction(tokens, s.line, *place, back)?,
        }
        Ok(())
    }

    /// `.reg .pred p, q`: named registers hide outer ones. Numbered ones (`%r<9>`) are made when met, except in an
    /// inner scope, where they must be new.
    fn registers(&mut self, tokens: &[Token]) {
        for (i, token) in tokens.iter().enumerate() {
            let Token::Word(name) = token else { continue };
            if name.starts_with('.') {
                continue;
            }
            if let (Some(Token::Mark('<')), Some(Token::Number(n))) = (tokens.get(i + 1), tokens.get(i + 2)) {
                if self.scopes.len() > 1 {
                    for k in 0..*n {
                        self.named(format!("{name}{k}"));
                    }
                } else {
                    self.numbered.push(name.clone());
                }
            } else {
                self.named(name.clone());
            }
        }
    }

    fn named(&mut self, name: String) {
        let r = self.fresh();
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, r);
        }
    }

    /// `.loc file line column[, function_name $L, inlined_at file line column]`; line 0 keeps the last place.
    fn place(&mut self, tokens: &[Token], place: &mut u32) {
        let numbers: Vec<u32> =
            tokens.iter().filter_map(|t| if let Token::Number(n) = t { Some(*n as u32) } else { None }).collect();
        let inlined = tokens.iter().any(|t| matches!(t, Token::Word(w) if w == "inlined_at"));
        let [file, line, column, ..] = numbers[..] else { return };
        if line == 0 {
            return;
        }
        let inlined_at = match numbers[3..] {
            [.., f, l, c] if inlined => Some((f, l, c)),
            _ => None,
        };
        *place = self.program.places.len() as u32;
        self.program.places.push(Place { file, line, column, inlined_at });
    }

    fn instruction(&mut self, tokens: &[Token], line: u32, place: u32, back: Option<Reg>) -> Result<(), String> {
        let mut tokens = tokens;
        let mut guard = None;
        if tokens.first() == Some(&Token::Mark('@')) {
            let negated = tokens.get(1) == Some(&Token::Mark('!'));
            let at = 1 + usize::from(negated);
            let Some(Token::Word(p)) = tokens.get(at) else { return Err("a guard without a predicate".into()) };
            let p = self.register(p).ok_or_else(|| format!("the predicate '{p}'"))?;
            guard = Some((p, negated));
            tokens = &tokens[at + 1..];
        }
        let Some(Token::Word(opcode)) = tokens.first() else { return Err("an instruction without an opcode".into()) };
        let form = Form::new(opcode);
        let operands = Reader { tokens: &tokens[1..], names: self }.all()?;
        let ops = match form.name {
            "call" => self.call(&operands)?,
            "ret" => vec![back.map_or(Op::Exit, |back| Op::Return { back })],
            _ => decode::decode(&form, &operands, self).map_err(|e| format!("{opcode}: {e}"))?,
        };
        for op in ops {
            if let Some(label) = label(&op, &operands) {
                let (inst, scopes) = (self.program.insts.len(), self.scope_ids.clone());
                self.fixes.push(Fix { inst, label, scopes, line });
            }
            self.program.insts.push(Inst { guard, op, line, place, guarded: Vec::new() });
        }
        Ok(())
    }

    /// `call (returns), function, (params)`: copies the arguments in, jumps, and copies the results out.
    fn call(&mut self, operands: &[Operand]) -> Result<Vec<Op>, String> {
        let at = operands.iter().position(|o| matches!(o, Operand::Name(_))).ok_or("an indirect call")?;
        let Operand::Name(name) = &operands[at] else { return Err("an indirect call".into()) };
        let frame = self.frames.get(name).cloned().ok_or_else(|| format!("the function '{name}' has no body"))?;
        let vector = |o: Option<&Operand>| match o {
            Some(Operand::Vector(v)) => v.clone(),
            _ => Vec::new(),
        };
        let (returns, params) = (vector(at.checked_sub(1).map(|i| &operands[i])), vector(operands.get(at + 1)));
        if returns.len() > frame.returns.len() || params.len() != frame.params.len() {
            return Err(format!("'{name}' is called with {} parameters, has {}", params.len(), frame.params.len()));
        }
        let address = |o: &Operand| -> Result<usize, String> {
            let Operand::Reg(r) = o else { return Err(format!("{o:?} is no parameter")) };
            let found = self.program.constants.iter().find(|(c, _)| c == r);
            match found {
                Some((_, Constant::Value(v))) if *v >= FRAME => Ok((*v - FRAME) as usize),
                _ => Err("a parameter passed in a register".into()),
            }
        };
        let copies = |outer: &[Operand], inner: &[(usize, usize)]| -> Result<Vec<(usize, usize, usize)>, String> {
            outer.iter().zip(inner).map(|(o, (at, bytes))| Ok((address(o)?, *at, *bytes))).collect()
        };
        let arguments = copies(&params, &frame.params)?;
        let results = copies(&returns, &frame.returns)?.into_iter().map(|(o, i, n)| (i, o, n)).collect();
        Ok(vec![
            Op::Call { target: 0, back: frame.back, arguments, function: name.clone() },
            Op::CopyLocal { copies: results },
        ])
    }
}

/// The label or function that an instruction jumps to.
fn label(op: &Op, operands: &[Operand]) -> Option<String> {
    match op {
        Op::Branch { .. } => match operands.first() {
            Some(Operand::Name(n)) => Some(n.clone()),
            _ => None,
        },
        Op::Call { function, .. } => Some(function.clone()),
        _ => None,
    }
}
