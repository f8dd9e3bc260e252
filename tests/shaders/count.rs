//! Counts what a workgroup executes: the entry point is walked for each of its threads, as naga parsed it, with the integers
//! that control flow depends on and without the data. What a compiler makes of it may be less; it is no measure of time.
//!
//! An operation on four numbers counts as four; a load or store counts once, however wide it is. A fused multiply-add counts as
//! itself (a dot product as one for each pair), conversions of bits, swizzles and register moves as nothing. A branch on data
//! is not taken.
//!
//! Every index on the way is checked: it must be within the array, by its value, or, where it is data, by the mask that cuts
//! it off.

use std::collections::HashMap;
use std::ops::{AddAssign, Sub};

use naga::front::wgsl;
use naga::valid::{Capabilities, FunctionInfo, ModuleInfo, ValidationFlags, Validator};
use naga::{
    AddressSpace, ArraySize, BinaryOperator, Binding, Block, BuiltIn, Expression, Function, Handle, Literal,
    LocalVariable, MathFunction, Module, Statement, TypeInner, UnaryOperator,
};

/// What was executed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub multiply_adds: u64,
    /// All other arithmetic, of addresses too.
    pub operations: u64,
    /// Loads of storage buffers.
    pub loads: u64,
    pub stores: u64,
    /// Loads of and stores to memory that the workgroup shares.
    pub shared_loads: u64,
    pub shared_stores: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.multiply_adds += other.multiply_adds;
        self.operations += other.operations;
        self.loads += other.loads;
        self.stores += other.stores;
        self.shared_loads += other.shared_loads;
        self.shared_stores += other.shared_stores;
    }
}

impl Sub for Counts {
    type Output = Counts;
    fn sub(self, other: Counts) -> Counts {
        Counts {
            multiply_adds: self.multiply_adds - other.multiply_adds,
            operations: self.operations - other.operations,
            loads: self.loads - other.loads,
            stores: self.stores - other.stores,
            shared_loads: self.shared_loads - other.shared_loads,
            shared_stores: self.shared_stores - other.shared_stores,
        }
    }
}

/// What is walked.
pub struct Launch<'a> {
    pub entry: &'a str,
    pub overrides: &'a [(&'a str, u32)],
    /// Parameters by name; what is not named is 0.
    pub params: &'a [(&'a str, u32)],
    pub workgroup: [u32; 3],
    /// How many workgroups there are.
    pub grid: [u32; 3],
    /// Bytes of each storage buffer, by binding; without, they are endless.
    pub buffers: Option<&'a [u64]>,
}

/// A parsed and valid shader.
pub struct Shader {
    module: Module,
    info: ModuleInfo,
}

impl Shader {
    pub fn new(text: &str) -> Shader {
        let module = wgsl::parse_str(text).unwrap_or_else(|e| panic!("{}", e.emit_to_string(text)));
        let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
        let info = validator.validate(&module).unwrap_or_else(|e| panic!("{}", e.emit_to_string(text)));
        Shader { module, info }
    }

    /// The names of its parameters, in order.
    #[cfg(feature = "wgpu")]
    pub fn parameters(&self) -> Vec<String> {
        let uniform = self.module.global_variables.iter().find(|(_, v)| v.space == AddressSpace::Uniform);
        match uniform.map(|(_, variable)| &self.module.types[variable.ty].inner) {
            Some(TypeInner::Struct { members, .. }) => members.iter().filter_map(|m| m.name.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// What all threads of a workgroup execute.
    pub fn count(&self, launch: &Launch) -> Counts {
        let mut points = self.module.entry_points.iter().enumerate();
        let (at, point) = points.find(|(_, e)| e.name == launch.entry).expect("the entry point");
        let mut total = Counts::default();
        for thread in 0..point.workgroup_size[0] {
            let arguments = point.function.arguments.iter().map(|a| match a.binding {
                Some(Binding::BuiltIn(BuiltIn::LocalInvocationIndex)) => Some(Ints::one(thread)),
                Some(Binding::BuiltIn(BuiltIn::WorkGroupId)) => Some(Ints::of(&launch.workgroup)),
                Some(Binding::BuiltIn(BuiltIn::NumWorkGroups)) => Some(Ints::of(&launch.grid)),
                _ => None,
            });
            let (private, counts) = (HashMap::new(), Counts::default());
            let mut walk = Walk { module: &self.module, info: &self.info, launch, private, counts };
            walk.call(&point.function, self.info.get_entry_point(at), arguments.collect());
            total += walk.counts;
        }
        total
    }
}

/// Up to four integers or truths.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Ints {
    lanes: [u32; 4],
    len: usize,
}

impl Ints {
    fn one(x: u32) -> Ints {
        Ints::of(&[x])
    }

    fn of(all: &[u32]) -> Ints {
        let mut lanes = [0; 4];
        lanes[..all.len()].copy_from_slice(all);
        Ints { lanes, len: all.len() }
    }

    fn lane(&self, i: usize) -> u32 {
        self.lanes[if self.len == 1 { 0 } else { i }]
    }

    /// `f` of each pair; one number meets all of several.
    fn zip(self, other: Ints, f: impl Fn(u32, u32) -> Option<u32>) -> Value {
        let len = self.len.max(other.len);
        let lanes: Option<Vec<u32>> = (0..len).map(|i| f(self.lane(i), other.lane(i))).collect();
        lanes.map(|lanes| Ints::of(&lanes))
    }
}

/// Integers that are known, or anything else.
type Value = Option<Ints>;

/// What a pointer points to, as far as it matters.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Local(Handle<LocalVariable>),
    Private(Handle<naga::GlobalVariable>),
    Shared,
    Storage,
    Parameter(Value),
    /// An element of a variable that is in registers.
    Element,
}

enum Flow {
    Next,
    Break,
    Continue,
    Return(Value),
}

struct Walk<'a> {
    module: &'a Module,
    info: &'a ModuleInfo,
    launch: &'a Launch<'a>,
    private: HashMap<Handle<naga::GlobalVariable>, Value>,
    counts: Counts,
}

/// A function that is being executed.
struct Frame<'a> {
    function: &'a Function,
    info: &'a FunctionInfo,
    arguments: Vec<Value>,
    locals: Vec<Value>,
    /// Of the expressions that were executed.
    values: Vec<Option<Value>>,
}

impl<'a> Walk<'a> {
    fn call(&mut self, function: &'a Function, info: &'a FunctionInfo, arguments: Vec<Value>) -> Value {
        let (locals, values) = (Vec::new(), vec![None; function.expressions.len()]);
        let mut frame = Frame { function, info, arguments, locals, values };
        for (_, local) in function.local_variables.iter() {
            let value = local.init.and_then(|init| self.value(&frame, init));
            frame.locals.push(value);
        }
        match self.block(&mut frame, &function.body) {
            Flow::Return(value) => value,
            _ => None,
        }
    }

    fn block(&mut self, frame: &mut Frame<'a>, block: &'a Block) -> Flow {
        for statement in block.iter() {
            match self.statement(frame, statement) {
                Flow::Next => {}
                other => return other,
            }
        }
        Flow::Next
    }

    fn statement(&mut self, frame: &mut Frame<'a>, statement: &'a Statement) -> Flow {
        match statement {
            Statement::Emit(range) => {
                for handle in range.clone() {
                    self.charge(frame, handle);
                    let value = self.evaluate(frame, handle);
                    frame.values[handle.index()] = Some(value);
                }
            }
            Statement::Block(inner) => return self.block(frame, inner),
            Statement::If { condition, accept, reject } => {
                let taken = self.value(frame, *condition).is_some_and(|c| c.lanes[0] != 0);
                return self.block(frame, if taken { accept } else { reject });
            }
            Statement::Loop { body, continuing, break_if } => loop {
                match self.block(frame, body) {
                    Flow::Break => break,
                    Flow::Return(value) => return Flow::Return(value),
                    Flow::Next | Flow::Continue => {}
                }
                self.block(frame, continuing);
                if break_if.is_some_and(|b| self.value(frame, b).is_none_or(|b| b.lanes[0] != 0)) {
                    break;
                }
            },
            Statement::Break => return Flow::Break,
            Statement::Continue => return Flow::Continue,
            Statement::Return { value } => return Flow::Return(value.and_then(|v| self.value(frame, v))),
            Statement::Store { pointer, value } => {
                let value = self.value(frame, *value);
                self.check(frame, *pointer);
                match self.place(frame, *pointer) {
                    Place::Local(handle) => frame.locals[handle.index()] = value,
                    Place::Private(handle) => _ = self.private.insert(handle, value),
                    Place::Shared => self.counts.shared_stores += 1,
                    Place::Storage => self.counts.stores += 1,
                    Place::Parameter(_) | Place::Element => {}
                }
            }
            Statement::Call { function, arguments, result } => {
                let arguments = arguments.iter().map(|&a| self.value(frame, a)).collect();
                let value = self.call(&self.module.functions[*function], &self.info[*function], arguments);
                if let Some(result) = result {
                    frame.values[result.index()] = Some(value);
                }
            }
            Statement::ControlBarrier(_) | Statement::MemoryBarrier(_) => {}
            other => panic!("not counted: {other:?}"),
        }
        Flow::Next
    }

    fn inner(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> &TypeInner {
        frame.info[handle].ty.inner_with(&self.module.types)
    }

    /// Numbers in the value of an expression.
    fn lanes(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> u64 {
        match self.inner(frame, handle) {
            TypeInner::Vector { size, .. } => *size as u64,
            _ => 1,
        }
    }

    /// Counts one execution of an expression.
    fn charge(&mut self, frame: &Frame<'a>, handle: Handle<Expression>) {
        let lanes = self.lanes(frame, handle);
        match &frame.function.expressions[handle] {
            Expression::Math { fun: MathFunction::Fma, .. } => self.counts.multiply_adds += lanes,
            Expression::Math { fun: MathFunction::Dot, arg, .. } => {
                self.counts.multiply_adds += self.lanes(frame, *arg);
            }
            Expression::Binary { .. }
            | Expression::Unary { .. }
            | Expression::Select { .. }
            | Expression::Relational { .. }
            | Expression::Math { .. } => self.counts.operations += lanes,
            Expression::As { expr, convert: Some(_), .. } if self.inner(frame, *expr) != self.inner(frame, handle) => {
                self.counts.operations += lanes;
            }
            Expression::Load { pointer } => {
                self.check(frame, *pointer);
                match self.place(frame, *pointer) {
                    Place::Shared => self.counts.shared_loads += 1,
                    Place::Storage => self.counts.loads += 1,
                    Place::Local(_) | Place::Private(_) | Place::Parameter(_) | Place::Element => {}
                }
            }
            _ => {}
        }
    }

    fn value(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> Value {
        frame.values[handle.index()].unwrap_or_else(|| self.evaluate(frame, handle))
    }

    fn evaluate(&self, frame: &Frame<'a>, handle: Handle<Expression>) -> Value {
        let value = |h: &Handle<Expression>| self.value(frame, *h);
        match &frame.function.expressions[handle] {
            Expression::Literal(literal) => known(literal),
            Expression::Constant(constant) => self.constant(self.module.constants[*constant].init),
            Expression::Override(handle) => {
                let over = &self.module.overrides[*handle];
                let given = self.launch.overrides.iter().find(|(name, _)| over.name.as_deref() == Some(name));
                given.map(|&(_, value)| Ints::one(value)).or_else(|| self.constant(over.init?))
            }
            Expression::ZeroValue(_) => Some(Ints::one(0)),
            Expression::FunctionArgument(i) => frame.arguments[*i as usize],
            Expression::AccessIndex { base, index } => Some(Ints::one(value(base)?.lane(*index as usize))),
            Expression::Splat { value: inner, .. } => value(inner),
            Expression::Compose { components, .. } => {
                let lanes: Option<Vec<u32>> = components.iter().map(|c| value(c).map(|c| c.lanes[0])).collect();
                lanes.filter(|lanes| lanes.len() <= 4).map(|lanes| Ints::of(&lanes))
            }
            Expression::Load { pointer } => match self.place(frame, *pointer) {
                Place::Local(local) => frame.locals[local.index()],
                Place::Private(global) => self.private.get(&global).copied().flatten(),
                Place::Parameter(value) => value,
                Place::Shared | Place::Storage | Place::Element => None,
            },
            Expression::Unary { op: UnaryOperator::LogicalNot, expr } => {
                value(expr).map(|x| Ints::one(u32::from(x.lanes[0] == 0)))
            }
            Expression::Binary { op, left, right } => value(left)?.zip(value(right)?, |a, b| binary(*op, a, b)),
            Expression::Select { condition, accept, reject } => {
                value(if value(condition)?.lanes[0] != 0 { accept } else { reject })
            }
            Expression::Math { fun: MathFunction::Min, arg, arg1: Some(other), .. } => {
                value(arg)?.zip(value(other)?, |a, b| Some(a.min(b)))
            }
            Expression::As { expr, .. } => value(expr),
            _ => None,
        }
    }

    /// A constant of the module.
    fn constant(&self, handle: Handle<Expression>) -> Value {
        match &self.module.global_expressions[handle] {
            Expression::Literal(literal) => known(literal),
            Expression::ZeroValue(_) => Some(Ints::one(0)),
            _ => None,
        }
    }

    fn place(&self, frame: &Frame<'a>, pointer: Handle<Expression>) -> Place {
        match &frame.function.expressions[pointer] {
            Expression::LocalVariable(handle) => Place::Local(*handle),
            Expression::GlobalVariable(handle) => match self.module.global_variables[*handle].space {
                AddressSpace::WorkGroup => Place::Shared,
                AddressSpace::Storage { .. } => Place::Storage,
                AddressSpace::Uniform => Place::Parameter(None),
                _ => Place::Private(*handle),
            },
            Expression::AccessIndex { base, index } => match self.place(frame, *base) {
                Place::Parameter(_) => Place::Parameter(self.parameter(frame, *base, *index)),
                place => element(place),
            },
            Expression::Access { base, .. } => element(self.place(frame, *base)),
            other => panic!("no pointer: {other:?}"),
        }
    }

    fn parameter(&self, frame: &Frame<'a>, base: Handle<Expression>, index: u32) -> Value {
        let TypeInner::Pointer { base, .. } = self.inner(frame, base) else { return None };
        let TypeInner::Struct { members, .. } = &self.module.types[*base].inner else { return None };
        let name = members[index as usize].name.as_deref()?;
        Some(Ints::one(self.launch.params.iter().find(|(n, _)| *n == name).map_or(0, |&(_, value)| value)))
    }

    /// That every index of a pointer is within what it indexes.
    fn check(&self, frame: &Frame<'a>, pointer: Handle<Expression>) {
        let (base, index) = match &frame.function.expressions[pointer] {
            Expression::Access { base, index } => (*base, *index),
            Expression::AccessIndex { base, .. } => return self.check(frame, *base),
            _ => return,
        };
        self.check(frame, base);
        let Some(length) = self.length(frame, base) else { return };
        let index_of = || format!("{:?} of {base:?} in {:?}", frame.function.expressions[index], frame.function.name);
        // Data is cut off by a mask.
        let most = self.value(frame, index).map(|i| i.lanes[0]).or_else(|| self.mask(frame, index));
        let most = most.unwrap_or_else(|| panic!("an index that is data: {}", index_of()));
        assert!(u64::from(most) < length, "index {most} of {length}: {}", index_of());
    }

    fn mask(&self, frame: &Frame<'a>, index: Handle<Expression>) -> Option<u32> {
        match &frame.function.expressions[index] {
            Expression::Binary { op: BinaryOperator::And, right, .. } => self.value(frame, *right).map(|m| m.lanes[0]),
            _ => None,
        }
    }

    /// Elements of what a pointer points to, where that has any.
    fn length(&self, frame: &Frame<'a>, pointer: Handle<Expression>) -> Option<u64> {
        let TypeInner::Pointer { base, .. } = *self.inner(frame, pointer) else { return None };
        match self.module.types[base].inner {
            TypeInner::Array { size: ArraySize::Constant(n), .. } => Some(u64::from(n.get())),
            TypeInner::Array { size: ArraySize::Dynamic, stride, .. } => {
                let Expression::GlobalVariable(global) = frame.function.expressions[pointer] else { return None };
                let binding = self.module.global_variables[global].binding.as_ref()?.binding;
                Some(self.launch.buffers?[binding as usize] / u64::from(stride))
            }
            TypeInner::Vector { size, .. } => Some(size as u64),
            _ => None,
        }
    }
}

fn element(place: Place) -> Place {
    match place {
        Place::Local(_) | Place::Private(_) => Place::Element,
        other => other,
    }
}

fn known(literal: &Literal) -> Value {
    match *literal {
        Literal::U32(x) => Some(Ints::one(x)),
        Literal::I32(x) => Some(Ints::one(x as u32)),
        Literal::Bool(x) => Some(Ints::one(u32::from(x))),
        _ => None,
    }
}

/// Of two u32, or two truths.
fn binary(op: BinaryOperator, x: u32, y: u32) -> Option<u32> {
    Some(match op {
        BinaryOperator::Add => x.wrapping_add(y),
        BinaryOperator::Subtract => x.wrapping_sub(y),
        BinaryOperator::Multiply => x.wrapping_mul(y),
        BinaryOperator::Divide => x.checked_div(y)?,
        BinaryOperator::Modulo => x.checked_rem(y)?,
        BinaryOperator::Equal => u32::from(x == y),
        BinaryOperator::NotEqual => u32::from(x != y),
        BinaryOperator::Less => u32::from(x < y),
        BinaryOperator::LessEqual => u32::from(x <= y),
        BinaryOperator::Greater => u32::from(x > y),
        BinaryOperator::GreaterEqual => u32::from(x >= y),
        BinaryOperator::And | BinaryOperator::LogicalAnd => x & y,
        BinaryOperator::InclusiveOr | BinaryOperator::LogicalOr => x | y,
        BinaryOperator::ExclusiveOr => x ^ y,
        BinaryOperator::ShiftLeft => x.checked_shl(y)?,
        BinaryOperator::ShiftRight => x.checked_shr(y)?,
    })
}
