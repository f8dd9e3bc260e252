//! Attention at a site: within a stream, across streams, over a cache, and with keys that methods put before a sequence.

use super::hooks::{Qkv, Site};
use super::inputs::{self, MAIN, StreamId};
use super::{Cached, Nn, Role};
use crate::error::{Error, Result};
use crate::graph::{Phase, Val};
use crate::ops::Attention;
use crate::ops::attention::{PositionBias, Ranges};

const PADDING: &str = "train without --qa-padding: the softmax is then over a sequence's own tokens";

impl Nn<'_> {
    /// Attention of each token over its own sequence, as the methods change it; when generating, over the cache named
    /// after `path`.
    pub fn attention(&mut self, path: &str, q: Val, k: Val, v: Val, spec: Attention) -> Result<Val> {
        self.attention_of(path, Qkv { q, k, v, spec, queries: MAIN, keys: MAIN, bias: None, prefixed: false })
    }

    /// The same between any streams.
    pub fn attention_of(&mut self, path: &str, qkv: Qkv) -> Result<Val> {
        let site = self.enter(path, Role::Attention);
        self.next().attention(self, &site, qkv)
    }

    /// The attention itself.
    pub fn base_attention(&mut self, at: &Site, qkv: Qkv) -> Result<Val> {
        let Qkv { q, k, v, queries, keys, bias, .. } = qkv;
        let spec = Attention { longest: self.longest, ..qkv.spec };
        // Ranges that the host computes say all: causality and window included.
        let by_range = Attention { causal: false, window: None, ..spec };
        let (k, v, ranges, spec) = match self.cached {
            Some(cached) if (queries, keys) == (MAIN, MAIN) => {
                let k = self.past(&format!("{}.k_cache", at.path), k, cached.capacity, cached.slots)?;
                let v = self.past(&format!("{}.v_cache", at.path), v, cached.capacity, cached.slots)?;
                let seen = match spec.window {
                    Some(window) => self.input(inputs::cached_key_range(window))?,
                    None => self.stream(MAIN)?.key_range,
                };
                (k, v, Ranges { keys: seen, queries: None }, by_range)
            }
            Some(Cached { cross: Some(keys), .. }) if queries != qkv.keys => {
                (k, v, Ranges { keys, queries: None }, by_range)
            }
            _ if queries != keys => (k, v, self.cross_ranges(queries, keys)?, by_range),
            _ if qkv.prefixed && self.layout.padding.is_some() => {
                return Err(Error::unsupported("padding after prefixes", PADDING));
            }
            _ if qkv.prefixed => {
                let of_keys = self.input(inputs::prefixed_key_range(queries, spec.causal, spec.window))?;
                let of_queries = self.input(inputs::prefixed_query_range(queries, spec.causal, spec.window))?;
                (k, v, Ranges { keys: of_keys, queries: Some(of_queries) }, by_range)
            }
            _ if self.layout.padding.is_some() && queries == MAIN => {
                if spec.causal || spec.window.is_some() {
                    return Err(Error::unsupported("padding in attention that is causal or has a window", PADDING));
                }
                let of_keys = self.stream(queries)?.key_range;
                let of_queries = self.input(inputs::padded_query_range("query_range", queries))?;
                (k, v, Ranges { keys: of_keys, queries: Some(of_queries) }, spec)
            }
            _ => (k, v, Ranges::same(self.stream(queries)?.key_range), spec),
        };
        match bias {
            // A token's position is its place among the keys that it sees, prefixes counted.
            Some(table) => {
                let bias = PositionBias { table, q_pos: self.stream(queries)?.positions };
                self.g.attention_with_bias([q, k, v], ranges, bias, spec)
            }
            None => self.g.attention(q, k, v, ranges, spec),
        }
    }

    /// Rows of `x` joined to the cache `name`, and the cache.
    fn past(&mut self, name: &str, x: Val, rows: usize, slots: Val) -> Result<Val> {
        let width = self.g.ty(x).cols();
        let cache = match self.written.get(name) {
            Some(&cache) => cache,
            None => self.cache(name, rows, width),
        };
        let cache = self.g.cache_write(cache, x, slots)?;
        self.written.insert(name.to_string(), cache);
        Ok(cache)
    }

    fn cross_ranges(&mut self, queries: StreamId, keys: StreamId) -> Result<Ranges> {
        let of_keys = self.input(inputs::cross_range("cross.key_range", queries, keys))?;
        let of_queries = self.input(inputs::cross_range("cross.query_range", keys, queries))?;
        Ok(Ranges { keys: of_keys, queries: Some(of_queries) })
    }

    /// Keys and values of another stream's tokens that the attention `path` reads. `f` computes them; when generating,
    /// it does so in the phase ENCODE, and they are kept for the others.
    pub fn memory(&mut self, path: &str, f: impl FnOnce(&mut Self) -> Result<[Val; 2]>) -> Result<[Val; 2]> {
        let names = [format!("{path}.k_memory"), format!("{path}.v_memory")];
        match self.cached {
            None => f(self),
            Some(cached) if self.g.phase == Phase::ENCODE => {
                let vals = f(self)?;
                for (name, x) in names.iter().zip(vals) {
                    self.past(name, x, cached.source, cached.slots)?;
                }
                Ok(vals)
            }
            Some(_) => {
                let cached = |name: &String| {
                    let found = self.named.get(name).copied();
                    found.ok_or_else(|| self.g.refuse("memory", format!("{name} before it is written")))
                };
                Ok([cached(&names[0])?, cached(&names[1])?])
            }
        }
    }

    /// `qkv` with the rows `prefix` (keys, values) [P, width] before the keys and values of each sequence.
    pub fn prefixed(&mut self, qkv: Qkv, prefix: [Val; 2]) -> Result<Qkv> {
        let act = self.act();
        let mut joined = |x: Val, own: Val| {
            let x = self.g.cast(x, act)?;
            self.g.concat_rows(x, own)
        };
        let (k, v) = (joined(prefix[0], qkv.k)?, joined(prefix[1], qkv.v)?);
        if self.cached.is_some() {
            // The slots begin with those of the prefix: every phase writes it, so that any may run first.
            return Ok(Qkv { k, v, prefixed: true, ..qkv });
        }
        let order = self.input(inputs::prefixed_rows(qkv.keys))?;
        let mut gathered = |x: Val| {
            let x = self.g.embed(order, x, 1.0)?;
            self.g.cast(x, act)
        };
        let (k, v) = (gathered(k)?, gathered(v)?);
        Ok(Qkv { k, v, prefixed: true, ..qkv })
    }
}
