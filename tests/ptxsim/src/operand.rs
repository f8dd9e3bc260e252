//! Operands of one instruction, read from its tokens.

use crate::lex::Token;
use crate::program::{Constant, Reg};

/// What stands between two commas of an instruction.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    Reg(Reg),
    /// A predicate, negated.
    Not(Reg),
    /// `%r1|%p1`: a result and its predicate.
    Pair(Reg, Reg),
    /// `{a, b}` or `(a, b)`.
    Vector(Vec<Operand>),
    /// `[base+offset]`.
    Memory(Reg, i64),
    /// `[base, {x, y}]`: a tensor map and coordinates.
    Tensor(Reg, Vec<Operand>),
    /// `_`: the result is not wanted.
    Sink,
    /// A label or a function.
    Name(String),
}

/// Where names and constants become registers.
pub trait Names {
    fn register(&mut self, name: &str) -> Option<Reg>;
    fn constant(&mut self, constant: Constant) -> Reg;
    /// A register that nothing else uses.
    fn scratch(&mut self) -> Reg;
    /// The address of a variable, in its space.
    fn symbol(&mut self, name: &str, offset: i64) -> Option<Constant>;
}

/// A cursor over the tokens of one statement.
pub struct Reader<'a, N: Names> {
    pub tokens: &'a [Token],
    pub names: &'a mut N,
}

impl<N: Names> Reader<'_, N> {
    fn next(&mut self) -> Option<Token> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first.clone())
    }

    fn eat(&mut self, mark: char) -> bool {
        let hit = self.tokens.first() == Some(&Token::Mark(mark));
        if hit {
            self.tokens = &self.tokens[1..];
        }
        hit
    }

    /// All operands, separated by commas.
    pub fn all(&mut self) -> Result<Vec<Operand>, String> {
        let mut found = Vec::new();
        while !self.tokens.is_empty() {
            found.push(self.one()?);
            if !self.tokens.is_empty() && !self.eat(',') {
                return Err(format!("{:?} where a comma belongs", self.tokens[0]));
            }
        }
        Ok(found)
    }

    fn list(&mut self, close: char) -> Result<Vec<Operand>, String> {
        let mut found = Vec::new();
        while !self.eat(close) {
            found.push(self.one()?);
            self.eat(',');
        }
        Ok(found)
    }

    fn value(&mut self, v: u64) -> Reg {
        self.names.constant(Constant::Value(v))
    }

    /// `+ 8`, `+ -8` or nothing.
    fn offset(&mut self) -> Result<i64, String> {
        let mut sign = 1;
        if self.eat('-') {
            sign = -1;
        } else if !self.eat('+') {
            return Ok(0);
        }
        if self.eat('-') {
            sign = -sign;
        }
        match self.next() {
            Some(Token::Number(n)) => Ok(sign * n as i64),
            other => Err(format!("{other:?} where an offset belongs")),
        }
    }

    fn one(&mut self) -> Result<Operand, String> {
        match self.next().ok_or("an operand is missing")? {
            Token::Number(n) => Ok(Operand::Reg(self.value(n))),
            Token::Mark('-') => match self.next() {
                Some(Token::Number(n)) => Ok(Operand::Reg(self.value(n.wrapping_neg()))),
                other => Err(format!("{other:?} after a minus")),
            },
            Token::Mark('{') => Ok(Operand::Vector(self.list('}')?)),
            Token::Mark('(') => Ok(Operand::Vector(self.list(')')?)),
            Token::Mark('!') => match self.one()? {
                Operand::Reg(r) => Ok(Operand::Not(r)),
                other => Err(format!("{other:?} cannot be negated")),
            },
            Token::Mark('[') => self.memory(),
            Token::Word(w) => self.word(&w),
            other => Err(format!("{other:?} is no operand")),
        }
    }

    fn memory(&mut self) -> Result<Operand, String> {
        let base = match self.next() {
            Some(Token::Number(n)) => self.value(n),
            Some(Token::Word(w)) => {
                if let Some(r) = self.names.register(&w) {
                    r
                } else {
                    let offset = self.offset()?;
                    let symbol = self.names.symbol(&w, offset).ok_or_else(|| format!("the name '{w}'"))?;
                    self.names.constant(symbol)
                }
            }
            other => return Err(format!("{other:?} is no address")),
        };
        if self.eat(',') {
            let Operand::Vector(coordinates) = self.one()? else { return Err("tensor coordinates".into()) };
            return if self.eat(']') { Ok(Operand::Tensor(base, coordinates)) } else { Err("']' is missing".into()) };
        }
        let offset = self.offset()?;
        if self.eat(']') { Ok(Operand::Memory(base, offset)) } else { Err("']' is missing".into()) }
    }

    fn word(&mut self, w: &str) -> Result<Operand, String> {
        if w == "_" {
            return Ok(Operand::Sink);
        }
        let Some(first) = self.names.register(w) else {
            let offset = self.offset()?;
            return Ok(match self.names.symbol(w, offset) {
                Some(symbol) => Operand::Reg(self.names.constant(symbol)),
                None => Operand::Name(w.to_owned()),
            });
        };
        if !self.eat('|') {
            return Ok(Operand::Reg(first));
        }
        match self.next() {
            Some(Token::Word(second)) => {
                let second = self.names.register(&second).ok_or_else(|| format!("the predicate '{second}'"))?;
                Ok(Operand::Pair(first, second))
            }
            other => Err(format!("{other:?} after '|'")),
        }
    }
}
