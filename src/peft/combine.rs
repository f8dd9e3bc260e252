//! Several LoRA adapters made into one, with the results of PEFT 0.21.2's `add_weighted_adapter`: what `trimtab adapters merge`
//! does. Nothing of the base model is needed.
//!
//! Of a module, each adapter that has it gives Δ = s·B·A, with its own scale s = α/r (rsLoRA: α/√r), times its weight w. Ways
//! differ in what is put together (factors one by one, factors side by side, or the products, which are then cut to a rank by
//! their singular values) and in what is left out of them before (`arithmetic.rs`). The result has α = r, so that its scale is 1.
//!
//! PEFT leaves the scale of rsLoRA, √r, in a result whose first adapter has it, which multiplies the result by √r; here
//! `use_rslora` is false then, and the result is what the weights say.

mod arithmetic;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::bias::Bias;
use super::config::{AdapterConfig, LoraSpec, Targets};
use super::files::{self, Adapter};
use crate::cpu::svd::{self, Factors};
use crate::error::{Error, Result};
use crate::weights::{HostTensor, load::transpose};
use arithmetic::Mix;

pub use arithmetic::{Prune, Sign};

/// What of a module's adapters is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// All A's into one, and all B's.
    Factors,
    /// A's below one another, B's side by side: the ranks add up, and the result is exact.
    SideBySide,
    /// The products B·A, of whose sum the largest singular values are kept.
    Products,
}

/// A way of combining: a row of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Way {
    /// PEFT's `combination_type`.
    pub name: &'static str,
    /// What is put together.
    pub parts: Parts,
    /// What is left out before.
    pub prune: Option<Prune>,
    /// Of each value only adapters count whose sign most have (TIES: Yadav et al. 2023, arXiv:2306.01708).
    pub elect: bool,
}

const fn way(name: &'static str, parts: Parts, prune: Option<Prune>, elect: bool) -> Way {
    Way { name, parts, prune, elect }
}

/// Every way.
pub static WAYS: [Way; 11] = [
    way("linear", Parts::Factors, None, false),
    way("cat", Parts::SideBySide, None, false),
    way("svd", Parts::Products, None, false),
    way("ties", Parts::Factors, Some(Prune::Magnitude), true),
    way("ties_svd", Parts::Products, Some(Prune::Magnitude), true),
    way("dare_linear", Parts::Factors, Some(Prune::Random), false),
    way("dare_ties", Parts::Factors, Some(Prune::Random), true),
    way("dare_linear_svd", Parts::Products, Some(Prune::Random), false),
    way("dare_ties_svd", Parts::Products, Some(Prune::Random), true),
    way("magnitude_prune", Parts::Factors, Some(Prune::Magnitude), false),
    way("magnitude_prune_svd", Parts::Products, Some(Prune::Magnitude), false),
];

/// How adapters are combined.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// The way.
    pub way: &'static Way,
    /// The share of values that pruning keeps, above 0; 1 keeps all.
    pub density: Option<f64>,
    /// How the sign of the most is found; else by the sum.
    pub sign: Option<Sign>,
    /// The rank of results that are cut; else the largest of the adapters.
    pub rank: Option<usize>,
    /// Of what is left out at random.
    pub seed: u64,
}

impl How {
    /// The way of a name, with PEFT's defaults.
    pub fn named(name: &str) -> Result<How> {
        let names = || format!("one of {}", WAYS.iter().map(|w| w.name).collect::<Vec<_>>().join(", "));
        let way = WAYS.iter().find(|w| w.name == name).ok_or_else(|| Error::config("--method", name, names()))?;
        Ok(How { way, density: None, sign: None, rank: None, seed: 0 })
    }

    /// Whether settings fit the way.
    pub fn check(&self) -> Result<()> {
        let name = self.way.name;
        match (self.way.prune, self.density) {
            (Some(_), None) => {
                let expected = "the share of values that are kept, such as --density 0.5";
                return Err(Error::config("--density", format!("nothing, with method {name}"), expected));
            }
            (None, Some(density)) => {
                let found = format!("{density} with method {name}, which keeps all values");
                return Err(Error::config(
                    "--density",
                    found,
                    "no density, or a method of ties, dare or magnitude_prune",
                ));
            }
            (_, Some(density)) if !(density > 0.0 && density <= 1.0) => {
                return Err(Error::config("--density", density.to_string(), "a share above 0, 1 at most"));
            }
            _ => {}
        }
        if self.sign.is_some() && !self.way.elect {
            let found = format!("a way of electing signs with method {name}");
            return Err(Error::config("--majority-sign", found, "none, or a method of ties"));
        }
        match self.rank {
            Some(rank) if self.way.parts != Parts::Products => {
                let found = format!("{rank} with method {name}, which has no choice of rank");
                Err(Error::config("--svd-rank", found, "no rank, or method svd or one that ends in _svd"))
            }
            Some(rank) if !(1..=super::config::MAX_RANK).contains(&rank) => {
                let expected = format!("1 to {}", super::config::MAX_RANK);
                Err(Error::config("--svd-rank", rank.to_string(), expected))
            }
            _ => Ok(()),
        }
    }
}

/// An adapter and how much of it there is to be.
#[derive(Clone, Debug)]
pub struct Weighted {
    /// Its folder.
    pub dir: PathBuf,
    /// 1: as it is. It may be negative.
    pub weight: f64,
    /// What the folder has.
    pub adapter: Adapter,
}

impl Weighted {
    /// Reads a folder.
    pub fn read(dir: &Path, weight: f64) -> Result<Weighted> {
        let def = super::def_of(dir)?;
        if def.name != super::lora::DEF.name {
            let what = format!("{}: combining adapters of method {}", dir.display(), def.name);
            return Err(Error::unsupported(what, "only LoRA's low-rank factors are combined"));
        }
        Ok(Weighted { dir: dir.into(), weight, adapter: files::read_adapter(dir)? })
    }

    fn config(&self) -> &AdapterConfig {
        &self.adapter.config
    }

    /// PEFT's measure of an adapter's rank: the largest of any module.
    fn rank(&self) -> usize {
        let config = self.config();
        config.rank_pattern.iter().map(|(_, rank)| *rank).fold(config.rank, usize::max)
    }

    /// An error if there is something that PEFT does not combine, or loses.
    fn check(&self) -> Result<()> {
        let config = self.config();
        const SAVED: &str =
            "PEFT leaves what is trained whole out of the result; merge the adapters one by one (trimtab merge)";
        const BIAS: &str = "PEFT has at most one adapter with biases on a model, and leaves them out of the result";
        const TIED: &str = "combine adapters that were trained without it";
        const TAKEN: &str = "it belongs to what is left of its base; convert it to plain LoRA with PEFT's \
            path_initial_model_for_weight_conversion";
        const DORA: &str = "magnitudes belong to one sum of weight and factors; merge it into its base (trimtab merge)";
        let refused = [
            ("use_dora", config.dora, DORA),
            ("init_lora_weights of PiSSA or OLoRA", config.takes_from_base(), TAKEN),
            ("bias", config.bias != Bias::None, BIAS),
            ("lora_bias", config.lora_bias, BIAS),
            ("modules_to_save", !config.modules_to_save.is_empty(), SAVED),
            ("trainable_token_indices", config.tokens.is_some(), SAVED),
            ("ensure_weight_tying", config.ensure_weight_tying, TIED),
        ];
        if let Some((key, _, hint)) = refused.iter().find(|(_, there, _)| *there) {
            let what = format!("{}: {key} in an adapter that is combined with others", self.dir.display());
            return Err(Error::unsupported(what, *hint));
        }
        for name in self.adapter.tensors.keys() {
            if pair(name).is_none() && !is_table(name) {
                let found = format!("{name}, which is no factor of LoRA");
                return Err(self.wrong(found, "lora_A and lora_B of each module, and nothing else"));
            }
        }
        Ok(())
    }

    fn wrong(&self, found: String, expected: impl Into<String>) -> Error {
        Error::file(self.dir.join(files::WEIGHTS_FILE), found, expected)
    }

    /// The factors of a module, if it has them: checked against each other and the config.
    fn factors(&self, names: &Pair) -> Result<Option<Held<'_>>> {
        let tensors = &self.adapter.tensors;
        let (a, b) = match (tensors.get(&names.a), tensors.get(&names.b)) {
            (None, None) => return Ok(None),
            (Some(a), Some(b)) => (a, b),
            (a, _) => {
                let (there, missing) = if a.is_some() { (&names.a, &names.b) } else { (&names.b, &names.a) };
                return Err(self.wrong(format!("{there} without {missing}"), "both factors of each module"));
            }
        };
        let Some(LoraSpec { rank, scale, .. }) = self.config().resolve(&names.module)? else {
            let expected = "tensors of modules that adapter_config.json targets";
            return Err(self.wrong(format!("{}, which is no target", names.a), expected));
        };
        let fits = |t: &HostTensor, at: usize| t.shape.len() == 2 && t.shape[at] == rank;
        if !fits(a, 0) || !fits(b, 1) {
            let found = format!("{} of shape {:?} and {} of {:?}", names.a, a.shape, names.b, b.shape);
            return Err(self.wrong(found, format!("rank {rank} in both, as adapter_config.json has it")));
        }
        Ok(Some(Held { a, b, rank, scale, weight: self.weight }))
    }
}

/// The factors of one adapter at one module.
#[derive(Clone, Copy)]
struct Held<'a> {
    /// `[rank, in]`
    a: &'a HostTensor,
    /// `[out, rank]`
    b: &'a HostTensor,
    rank: usize,
    scale: f32,
    weight: f64,
}

impl Held<'_> {
    /// Values of weight and scale together, as f64.
    fn factor(&self) -> f64 {
        self.weight * f64::from(self.scale)
    }

    fn columns(&self) -> usize {
        self.a.shape[1]
    }

    /// s·B·A in f32, as PEFT has it before it leaves values out.
    fn delta(&self) -> Vec<f32> {
        let mut all = Vec::with_capacity(self.b.shape[0] * self.columns());
        for b in self.b.data.chunks_exact(self.rank) {
            let mut row = vec![0f64; self.columns()];
            for (a, b) in self.a.data.chunks_exact(self.columns()).zip(b) {
                row.iter_mut().zip(a).for_each(|(x, a)| *x += f64::from(*b) * f64::from(*a));
            }
            all.extend(row.iter().map(|x| *x as f32 * self.scale));
        }
        all
    }
}

/// Names of a module's factors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    module: String,
    a: String,
    b: String,
}

fn pair(name: &str) -> Option<Pair> {
    let tensor = files::tensor(name);
    let linear = [".lora_A.weight", ".lora_B.weight"].iter().find_map(|end| tensor.strip_suffix(end));
    let table = [".lora_embedding_A", ".lora_embedding_B"].iter().find_map(|end| tensor.strip_suffix(end));
    let of = |module: &str, a: fn(&str) -> String, b: fn(&str) -> String| {
        Some(Pair { module: module.into(), a: a(module), b: b(module) })
    };
    match (linear, table) {
        (Some(module), _) => of(module, files::lora_a, files::lora_b),
        (None, Some(module)) => of(module, files::embedding_a, files::embedding_b),
        (None, None) => None,
    }
}

/// A table of the base model that PEFT writes along.
fn is_table(name: &str) -> bool {
    name.ends_with(".base_layer.weight")
}

/// An adapter that was made of others.
#[derive(Clone, Debug)]
pub struct Combined {
    /// Its adapter_config.json.
    pub config: AdapterConfig,
    /// By their names in the file.
    pub tensors: BTreeMap<String, HostTensor>,
    /// The way that was taken.
    pub way: &'static Way,
    /// What there is to say.
    pub notes: Vec<String>,
}

/// Combines adapters, at least one.
pub fn combine(adapters: &[Weighted], how: &How) -> Result<Combined> {
    how.check()?;
    let (mut how, mut notes) = (*how, Vec::new());
    if let ([_], true) = (adapters, how.way.name != "linear") {
        notes.push(format!(
            "one adapter alone is multiplied by its weight, as PEFT does: method {} has no effect",
            how.way.name
        ));
        how = How { seed: how.seed, ..How::named("linear")? };
    }
    adapters.iter().try_for_each(Weighted::check)?;
    let config = config(adapters, &how, &mut notes)?;
    let names: BTreeSet<&String> = adapters.iter().flat_map(|w| w.adapter.tensors.keys()).collect();
    let mut tensors = BTreeMap::new();
    for name in names.iter().filter(|name| is_table(name)) {
        tensors.insert(name.to_string(), table(adapters, name)?);
    }
    let pairs: BTreeSet<Pair> = names.into_iter().filter_map(|name| pair(name)).collect();
    for (number, names) in pairs.iter().enumerate() {
        let held = adapters.iter().map(|w| w.factors(names)).collect::<Result<Vec<_>>>()?;
        let held: Vec<Held> = held.into_iter().flatten().collect();
        let sizes = |held: &Held| (held.b.shape[0], held.columns());
        if let Some(other) = held.iter().find(|h| sizes(h) != sizes(&held[0])) {
            let found = format!(
                "{} of {} by {} features, and of {} by {}",
                names.module,
                sizes(&held[0]).0,
                sizes(&held[0]).1,
                sizes(other).0,
                sizes(other).1
            );
            return Err(Error::config("--adapter", found, "adapters of one base model"));
        }
        let (a, b) = module(&held, &how, number, config.rank).map_err(|ranks| {
            let found = format!("ranks {ranks} at {} with method {}", names.module, how.way.name);
            Error::config("--method", found, "cat, svd or one that ends in _svd, where ranks may differ")
        })?;
        tensors.insert(names.a.clone(), a);
        tensors.insert(names.b.clone(), b);
    }
    Ok(Combined { config, tensors, way: how.way, notes })
}

/// The config of the result: the first one's, with PEFT's rank and the targets of all.
fn config(adapters: &[Weighted], how: &How, notes: &mut Vec<String>) -> Result<AdapterConfig> {
    let Some((first, rest)) = adapters.split_first() else {
        return Err(Error::config("--adapter", "nothing", "folders of adapters, each with its weight: runs/a:0.7"));
    };
    let spelled = |w: &Weighted| {
        let modules = w.adapter.tensors.keys().filter_map(|name| pair(name)).map(|p| p.module).collect::<Vec<_>>();
        w.config().spelled_out(modules.iter().map(String::as_str))
    };
    let mut config = spelled(first);
    if let Targets::Regex(text) = &config.targets {
        config.targets = Targets::Regex(format!("({text})"));
    }
    let ranks: Vec<usize> = adapters.iter().map(Weighted::rank).collect();
    let most = ranks.iter().copied().fold(1, usize::max);
    config.rank = match how.way.parts {
        Parts::SideBySide => ranks.iter().sum(),
        Parts::Products => how.rank.unwrap_or(most),
        Parts::Factors if ranks.iter().all(|rank| *rank == most) => most,
        Parts::Factors => {
            let shown: Vec<String> = ranks.iter().map(usize::to_string).collect();
            let found = format!("{}, of ranks {}", how.way.name, shown.join(" and "));
            return Err(Error::config("--method", found, "cat, svd or one that ends in _svd, where ranks may differ"));
        }
    };
    if config.rank > super::config::MAX_RANK {
        let expected = format!("{} at most: another method", super::config::MAX_RANK);
        return Err(Error::config("--method", format!("{} of rank {}", how.way.name, config.rank), expected));
    }
    for other in rest {
        let theirs = spelled(other);
        let same = [
            ("exclude_modules", config.exclude == theirs.exclude),
            ("layers_to_transform", config.layers == theirs.layers),
            ("layers_pattern", config.layers_pattern == theirs.layers_pattern),
        ];
        if let Some((key, _)) = same.iter().find(|(_, same)| !same) {
            let what = format!("{key} of {} beside another of {}", first.dir.display(), other.dir.display());
            return Err(Error::unsupported(
                what,
                "the result would have that of the first, and lose modules of the others",
            ));
        }
        config.targets = match (config.targets, theirs.targets) {
            (Targets::List(mut names), Targets::List(theirs)) => {
                let new: Vec<String> = theirs.into_iter().filter(|name| !names.contains(name)).collect();
                names.extend(new);
                Targets::List(names)
            }
            (Targets::Regex(one), Targets::Regex(other)) => Targets::Regex(format!("{one}|({other})")),
            _ => {
                let what = "target_modules as a list of one adapter and a regular expression of another";
                return Err(Error::unsupported(what, "PEFT combines lists with lists, expressions with expressions"));
            }
        };
        config.fan_in_fan_out |= theirs.fan_in_fan_out;
        if config.base_model != theirs.base_model {
            let name = |base: &Option<String>| base.clone().unwrap_or_else(|| "none".into());
            let (ours, theirs) = (name(&config.base_model), name(&theirs.base_model));
            notes.push(format!("the adapters name other base models: {ours} and {theirs}; the result names the first"));
        }
    }
    config.alpha = config.rank as f64;
    (config.rank_pattern, config.alpha_pattern, config.rslora) = (Vec::new(), Vec::new(), false);
    config.init = true.into();
    Ok(config.changed())
}

/// A table of the base model that is kept along.
fn table(adapters: &[Weighted], name: &str) -> Result<HostTensor> {
    let mut found: Option<(&Weighted, &HostTensor)> = None;
    for w in adapters {
        match (found, w.adapter.tensors.get(name)) {
            (None, Some(tensor)) => found = Some((w, tensor)),
            (Some((first, one)), Some(other)) if one != other => {
                return Err(
                    w.wrong(format!("another {name} than {}", first.dir.display()), "adapters of one base model")
                );
            }
            _ => {}
        }
    }
    found.map(|(_, tensor)| tensor.clone()).ok_or_else(|| Error::config("--adapter", name, "a table of an adapter"))
}

/// A and B of a module's result, of rank `rank`: what it needs less of it is zero. An error has ranks that differ.
fn module(held: &[Held], how: &How, number: usize, rank: usize) -> Result<(HostTensor, HostTensor), String> {
    let (outs, columns) = (held[0].b.shape[0], held[0].columns());
    let mut a = Vec::with_capacity(rank * columns);
    // Columns of B, each a row.
    let mut b: Vec<f32> = Vec::with_capacity(rank * outs);
    let mix = |part: u32| Mix { how, tensor: [number as u32, part] };
    match how.way.parts {
        Parts::SideBySide => {
            for h in held {
                let (weight, scale) = (h.weight as f32, h.scale);
                a.extend(h.a.data.iter().map(|x| x * weight * scale));
                b.extend(transpose(&h.b.data, h.rank));
            }
        }
        Parts::Factors => {
            if held.iter().any(|h| h.rank != held[0].rank) {
                return Err(held.iter().map(|h| h.rank.to_string()).collect::<Vec<_>>().join(" and "));
            }
            // Half of each weight is in A and half in B; the sign of one that is negative is in A.
            let half = |h: &Held| h.factor().abs().sqrt();
            let signed =
                held.iter().map(|h| (half(h) * if h.factor() < 0.0 { -1.0 } else { 1.0 }) as f32).collect::<Vec<_>>();
            let plain = held.iter().map(|h| half(h) as f32).collect::<Vec<_>>();
            let [of_a, of_b] = [|h: &Held| h.a.data.clone(), |h: &Held| h.b.data.clone()];
            a = arithmetic::mix(held.iter().map(of_a).collect(), &signed, &mix(0));
            b = transpose(&arithmetic::mix(held.iter().map(of_b).collect(), &plain, &mix(1)), held[0].rank);
        }
        Parts::Products => {
            let found = if how.way.prune.is_some() {
                let weights: Vec<f32> = held.iter().map(|h| h.weight as f32).collect();
                let sum = arithmetic::mix(held.iter().map(Held::delta).collect(), &weights, &mix(2));
                svd::of_dense(&sum.into_iter().map(f64::from).collect::<Vec<_>>(), columns, rank)
            } else {
                product(held, rank)
            };
            a.extend(found.right.iter().map(|x| *x as f32));
            b = transpose(&found.left.iter().map(|x| *x as f32).collect::<Vec<_>>(), rank);
        }
    }
    a.resize(rank * columns, 0.0);
    b.resize(rank * outs, 0.0);
    let (a, b) = ((vec![rank, columns], a), (vec![outs, rank], transpose(&b, outs)));
    Ok([a, b].map(|(shape, data)| HostTensor { shape, data }).into())
}

/// Σ w·s·B·A, cut to a rank without being multiplied out.
fn product(held: &[Held], rank: usize) -> Factors {
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for h in held {
        for (k, a) in h.a.data.chunks_exact(h.columns()).enumerate() {
            left.push(h.b.data.iter().skip(k).step_by(h.rank).map(|b| h.factor() * f64::from(*b)).collect());
            right.push(a.iter().copied().map(f64::from).collect());
        }
    }
    svd::of_product(left, right, rank)
}
