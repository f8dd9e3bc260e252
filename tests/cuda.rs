//! Every CUDA kernel that any sample of the op table launches, as machine code of every architecture: it compiles, spills
//! no register, and a card can start it (registers, threads, shared memory, grid). No card is needed; NVRTC is.

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use common::devices::Device;
use trimtab::backend::cuda::{self, Output, compiled, options};
use trimtab::backend::{Caps, Tiling};
use trimtab::bench::operands::in_16_bits;
use trimtab::bench::shapes;
use trimtab::dtype::Ty;
use trimtab::ops::{self, CudaLaunch, Lower, OpDef, Sample, Sizes, WGMMA};

const ARCHS: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

/// On this one every variant is compiled; on the others, of what differs only in how a weight is stored, f32 and NF4 with
/// double quantization, the least and the most that decoding takes. Where NF4 is decoded before a product, the product is of bf16.
const WHOLE: u32 = 80;

fn compiled_on(arch: u32, defines: &[(&'static str, i64)]) -> bool {
    let stored = |value| matches!(value, 0 | 4) || (value == 1 && matches!(arch, 90 | 100));
    arch == WHOLE || defines.iter().all(|&(name, value)| name != "W" || stored(value))
}

/// What a thread may have, and all threads of a block together (CUDA C++ Programming Guide, "Compute Capabilities").
const REGISTERS: (u32, u32) = (255, 65536);

/// What one kernel takes, as the assembler reports it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Takes {
    registers: u32,
    /// Bytes stored and loaded because registers did not suffice.
    spills: u32,
    /// Bytes of static shared memory.
    shared: u32,
}

/// The report of each kernel in a compiler's log.
fn kernels(log: &str) -> HashMap<String, Takes> {
    let mut all: HashMap<String, Takes> = HashMap::new();
    let mut name = String::new();
    for line in log.lines() {
        // The number before a unit: "12 bytes smem".
        let before = |unit: &str| -> u32 {
            let end = line.find(unit).unwrap_or(0);
            let digits = line[..end].trim_end().rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            digits.parse().unwrap_or(0)
        };
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            name = rest.split('\'').next().unwrap_or_default().into();
            all.insert(name.clone(), Takes::default());
        } else if let Some(takes) = all.get_mut(&name) {
            if line.contains("bytes spill") {
                takes.spills = before(" bytes spill stores") + before(" bytes spill loads");
            } else if line.contains(" registers") {
                takes.registers = before(" registers");
                takes.shared = before(" bytes smem");
            }
        }
    }
    all
}

/// What is wrong with the kernels of a file.
fn complaints(log: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = kernels(log);
    if all.is_empty() {
        wrong.push("the log names no kernel".into());
    }
    // What the assembler says where it waits for each wgmma before it begins the next.
    if let Some(line) = log.lines().find(|line| line.contains("wgmma.mma_async instructions are serialized")) {
        wrong.push(line.trim().into());
    }
    for (name, takes) in all {
        if takes.spills > 0 {
            wrong.push(format!("{name} spills {} bytes", takes.spills));
        }
        if takes.registers == 0 || takes.registers > REGISTERS.0 {
            wrong.push(format!("{name} takes {} registers", takes.registers));
        }
    }
    wrong
}

/// What keeps a card from starting `launch`.
fn unstartable(launch: &CudaLaunch, log: &str, shared_limit: u32) -> Option<String> {
    let Some(takes) = kernels(log).get(launch.entry).copied() else {
        return Some(format!("no kernel {} in {}.cu", launch.entry, launch.file));
    };
    // Registers are given to warps, in units of 256.
    let warps = launch.block.div_ceil(32);
    let registers = (32 * takes.registers).next_multiple_of(256) * warps;
    let [x, y, z] = launch.grid;
    let what = match () {
        () if launch.block == 0 || launch.block > 1024 => format!("a block of {} threads", launch.block),
        () if registers > REGISTERS.1 => format!("{registers} registers a block"),
        () if takes.shared + launch.shared > shared_limit => {
            format!("{} bytes of shared memory, the limit is {shared_limit}", takes.shared + launch.shared)
        }
        () if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65535 || z > 65535 => {
            format!("a grid of {:?}", launch.grid)
        }
        () => return None,
    };
    Some(format!("{}: {what}", launch.entry))
}

/// The launches of a sample: with no storage shared, and with each pair that may share it.
fn launches(op: &'static OpDef, sample: &Sample, arch: u32) -> Result<Vec<CudaLaunch>, String> {
    let caps = cuda::caps(format!("sm_{arch}"), arch);
    let ins: Vec<Ty> = sample.ins.iter().map(|i| i.ty.clone()).collect();
    let outs = op.types(&sample.attr, &ins)?;
    let pairs = op.in_place.iter().filter(|&&(i, o)| i < ins.len() && o < outs.len());
    // And those by wgmma of a card of one multiprocessor, which its tiles keep busy whatever the sample.
    let small = caps.wgmma.then(|| Caps { multiprocessors: Some(1), ..caps.clone() });
    let wanted = |caps: &Caps, launch: &CudaLaunch| caps.multiprocessors.is_none() || launch.defines.contains(&WGMMA);
    let mut all = Vec::new();
    // With what `--tune` tries.
    for caps in [Some(caps), small].into_iter().flatten().flat_map(|caps| Tiling::ALL.map(|tiling| caps.tiled(tiling)))
    {
        for pair in [None].into_iter().chain(pairs.clone().map(Some)) {
            let shared: Vec<Option<usize>> =
                (0..outs.len()).map(|o| pair.filter(|&&(_, out)| out == o).map(|&(input, _)| input)).collect();
            let lower = Lower { attr: &sample.attr, ins: &ins, outs: &outs, shared: &shared, caps: &caps };
            let launches = (op.cuda)(&lower).map_err(|e| e.to_string())?;
            all.extend(launches.into_iter().filter(|launch| wanted(&caps, launch)));
        }
    }
    Ok(all)
}

/// File, macros and architecture: one compilation.
type Key = (&'static str, Macros, u32);

type Macros = Vec<(&'static str, i64)>;

/// A file and a kernel in it.
type Kernel = (&'static str, String);

/// Least and most registers of a kernel's variants, and its most shared memory.
type Span = (u32, u32, u32);

/// What of the table a compilation is for.
#[derive(Default)]
struct Uses {
    launches: Vec<CudaLaunch>,
    /// (entry, op)
    ops: BTreeSet<(&'static str, &'static str)>,
}

/// Every compilation that a sample needs, and what is wrong with a lowering.
fn table() -> (BTreeMap<Key, Uses>, Vec<String>) {
    let only = std::env::var("TRIMTAB_OP").ok();
    let (mut all, mut wrong) = (BTreeMap::<Key, Uses>::new(), Vec::new());
    for arch in ARCHS {
        for op in ops::table().filter(|op| only.as_deref().is_none_or(|name| op.name == name)) {
            for sample in (op.samples)() {
                let compute_dtype = cuda::caps(String::new(), arch).compute_dtype;
                let narrow = compute_dtype.and_then(|dtype| in_16_bits(op, &sample, dtype));
                for sample in [Some(&sample), narrow.as_ref()].into_iter().flatten() {
                    match launches(op, sample, arch) {
                        Ok(found) => found.into_iter().filter(|l| compiled_on(arch, &l.defines)).for_each(|launch| {
                            let uses = all.entry((launch.file, launch.defines.clone(), arch)).or_default();
                            uses.ops.insert((launch.entry, op.name));
                            // Of launches that ask the same of a card, one is enough.
                            let asks = |l: &CudaLaunch| (l.entry, l.block, l.shared, l.grid);
                            if uses.launches.iter().all(|l| asks(l) != asks(&launch)) {
                                uses.launches.push(launch);
                            }
                        }),
                        Err(e) => wrong.push(format!("{} ({}) sm_{arch}: {e}", op.name, sample.name)),
                    }
                }
            }
        }
    }
    (all, wrong)
}

/// Tells a child process its share of the compilations: number/of.
const SHARE: &str = "TRIMTAB_TEST_SHARE";
const NAME: &str = "every_kernel_compiles_for_every_architecture_without_spills";

fn share() -> Option<(usize, usize)> {
    let text = std::env::var(SHARE).ok()?;
    let (share, of) = text.split_once('/')?;
    Some((share.parse().ok()?, of.parse().ok()?))
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_spills() {
    if Device::ptx(80).is_none() {
        return;
    }
    let (all, mut wrong) = table();
    assert!(!all.is_empty() || !wrong.is_empty(), "nothing was compiled");
    // NVRTC compiles one text at a time in a process, so every core gets a process; they meet in the cache's folder.
    let log_of = |key: &Key| compiled(key.0, &key.1, key.2, Output::Cubin).map(|c| c.log);
    if let Some((share, of)) = share() {
        all.keys().skip(share).step_by(of).for_each(|key| drop(log_of(key)));
        return;
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let children: Vec<_> = (1..cores)
        .map(|i| {
            let mut child = std::process::Command::new(std::env::current_exe().unwrap());
            child.args([NAME, "--exact"]).env(SHARE, format!("{i}/{cores}")).stdout(std::process::Stdio::null());
            child.spawn().unwrap()
        })
        .collect();
    all.keys().step_by(cores).for_each(|key| drop(log_of(key)));
    for mut child in children {
        child.wait().unwrap();
    }
    let logs: Vec<(&Key, trimtab::Result<String>)> = all.keys().map(|key| (key, log_of(key))).collect();
    let mut report = Report::default();
    for (key, log) in &logs {
        let (file, defines, arch) = key;
        let limit = cuda::caps(String::new(), *arch).workgroup_memory;
        let found: Vec<String> = match log {
            Ok(log) => {
                report.add(key, &all[*key], log);
                let starts = all[*key].launches.iter().filter_map(|launch| unstartable(launch, log, limit));
                complaints(log).into_iter().chain(starts).collect()
            }
            Err(e) => vec![e.to_string()],
        };
        wrong.extend(found.into_iter().map(|what| format!("{file}.cu {defines:?} sm_{arch}: {what}")));
    }
    eprintln!("{} compilations", all.len());
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if std::env::var_os("TRIMTAB_OP").is_none() {
        report.check();
    }
}

/// What scripts/gpu-check.sh runs on a card of `arch`: the samples of the op table, and what benches run.
fn run_on(arch: u32) -> BTreeSet<(&'static str, Macros)> {
    let sizes: Vec<Sizes> = ["smollm2", "llama-8b"].map(|shape| shapes::parse(shape).unwrap()).into();
    let compute_dtype = cuda::caps(String::new(), arch).compute_dtype;
    let mut all = BTreeSet::new();
    for op in ops::table() {
        let cases = sizes.iter().flat_map(|sizes| (op.cases)(sizes)).map(|case| case.sample);
        for sample in (op.samples)().into_iter().chain(cases) {
            let narrow = compute_dtype.and_then(|dtype| in_16_bits(op, &sample, dtype));
            let found = [Some(&sample), narrow.as_ref()].into_iter().flatten().map(|s| launches(op, s, arch));
            all.extend(found.filter_map(Result::ok).flatten().map(|launch| (launch.file, launch.defines)));
        }
    }
    all
}

/// Names the architectures, divided by commas, whose kernels scripts/gpu-build.sh puts into its cache; its processes have
/// shares.
const FILL: &str = "TRIMTAB_FILL";

#[test]
fn the_cache_is_filled_for_cards_that_are_elsewhere() {
    let archs = std::env::var(FILL).unwrap_or_default();
    let archs: Vec<u32> = archs.split(',').filter(|arch| !arch.is_empty()).map(|arch| arch.parse().unwrap()).collect();
    let (share, of) = share().unwrap_or((0, 1));
    let keys = archs.iter().flat_map(|&arch| run_on(arch).into_iter().map(move |key| (key, arch)));
    for ((file, defines), arch) in keys.skip(share).step_by(of) {
        compiled(file, &defines, arch, Output::Cubin).unwrap();
    }
    // That is all that tests launch there and more.
    let list = std::fs::read_to_string(common::root("kernels/variants.txt")).unwrap();
    let filled: BTreeSet<String> = run_on(90)
        .iter()
        .map(|(file, defines)| format!("{file} 90 {}", cuda::macros(defines)).trim_end().into())
        .collect();
    let tested: BTreeSet<String> =
        list.lines().filter(|l| l.split(' ').nth(1) == Some("90")).map(String::from).collect();
    assert!(tested.len() > 50 && tested.is_subset(&filled), "{:?}", tested.difference(&filled));
    assert!(filled.len() > tested.len(), "no more than {} variants", tested.len());
}

/// docs/kernels.md, from the compiler's reports.
#[derive(Default)]
struct Report {
    /// By file and entry, by architecture: least and most registers over the variants, most shared memory.
    kernels: BTreeMap<Kernel, BTreeMap<u32, Span>>,
    /// (file, architecture, macros)
    units: BTreeSet<(&'static str, u32, Macros)>,
    variants: BTreeMap<&'static str, BTreeSet<Macros>>,
    ops: BTreeMap<Kernel, BTreeSet<&'static str>>,
}

impl Report {
    fn add(&mut self, key: &Key, uses: &Uses, log: &str) {
        let (file, defines, arch) = key;
        self.units.insert((file, *arch, defines.clone()));
        self.variants.entry(file).or_default().insert(defines.clone());
        for (name, takes) in kernels(log) {
            let dynamic = uses.launches.iter().filter(|l| l.entry == name).map(|l| l.shared).max();
            let Some(dynamic) = dynamic else { continue };
            let all = self.kernels.entry((file, name.clone())).or_default();
            let row = all.entry(*arch).or_insert((u32::MAX, 0, 0));
            *row = (row.0.min(takes.registers), row.1.max(takes.registers), row.2.max(takes.shared + dynamic));
            let ops = uses.ops.iter().filter(|(entry, _)| *entry == name).map(|(_, op)| *op);
            self.ops.entry((file, name.clone())).or_default().extend(ops);
        }
    }

    fn table(&self) -> String {
        let (major, minor) = cuda::version().unwrap();
        let mut text = format!("NVRTC {major}.{minor}. Spills: none, in any variant on any architecture.\n");
        let hardware = hardware();
        for (file, variants) in &self.variants {
            let source = cuda::kernel(&format!("{file}.cu")).unwrap();
            let head: Vec<&str> = source
                .lines()
                .map_while(|l| l.strip_prefix("//"))
                .map(str::trim)
                .take_while(|l| !l.is_empty())
                .collect();
            text += &format!("\n### `kernels/{file}.cu`\n\n{}\n\n", head.join(" "));
            text += &format!("Variants compiled: {}.\n\n", variants.len());
            text += "| kernel | ops | registers sm_75 / 80 / 86 / 89 / 90 / 100 / 120 | shared memory | interpreted | on hardware |\n";
            text += "|---|---|---|---|---|---|\n";
            for ((_, entry), archs) in self.kernels.iter().filter(|((f, _), _)| f == file) {
                let ops = &self.ops[&(*file, entry.clone())];
                let registers: Vec<String> = ARCHS
                    .iter()
                    .map(|arch| match archs.get(arch) {
                        Some((a, b, _)) if a == b => a.to_string(),
                        Some((a, b, _)) => format!("{a}–{b}"),
                        None => "–".into(),
                    })
                    .collect();
                let shared = archs.values().map(|r| r.2).max().unwrap_or(0);
                // What only Hopper has is interpreted as it has it.
                let interpreted = if archs.keys().all(|&arch| arch == 90) { "sm_90" } else { "sm_80, sm_75" };
                let names: Vec<String> = ops.iter().map(|op| format!("`{op}`")).collect();
                text += &format!(
                    "| `{entry}` | {} | {} | {shared} B | {interpreted} | {hardware} |\n",
                    names.join(", "),
                    registers.join(" / "),
                );
            }
        }
        text
    }

    /// kernels/variants.txt: what the feature `cubins` compiles.
    fn list(&self) -> String {
        let mut text = String::from(
            "# File, architecture and macros of every compilation that a sample of the op table asks for; the feature\n\
             # `cubins` embeds them. TRIMTAB_BLESS=1 cargo test --test cuda rewrites this.\n",
        );
        for (file, arch, defines) in &self.units {
            text += format!("{file} {arch} {}", cuda::macros(defines)).trim_end();
            text.push('\n');
        }
        text
    }

    /// The table in docs/kernels.md is this one (TRIMTAB_BLESS=1 rewrites it), by the same compiler.
    fn check(&self) {
        let path = common::root("docs/kernels.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let (head, rest) = text.split_once("<!-- from the compiler -->\n").expect("the mark above the table");
        let bless = std::env::var_os("TRIMTAB_BLESS").is_some_and(|v| v == "1");
        let list = common::root("kernels/variants.txt");
        if bless {
            std::fs::write(&path, format!("{head}<!-- from the compiler -->\n{}", self.table())).unwrap();
            return std::fs::write(&list, self.list()).unwrap();
        }
        let same = std::fs::read_to_string(&list).is_ok_and(|text| text == self.list());
        assert!(same, "kernels/variants.txt is not what the op table asks for: TRIMTAB_BLESS=1 rewrites it");
        let (major, minor) = cuda::version().unwrap();
        if rest.starts_with(&format!("NVRTC {major}.{minor}.")) {
            assert!(
                rest == self.table(),
                "docs/kernels.md is not what the compiler reports: TRIMTAB_BLESS=1 rewrites it"
            );
        } else {
            eprintln!("docs/kernels.md is by another NVRTC than {major}.{minor}; not compared");
        }
    }
}

/// Which cards the op matrix passed on, by the files of scripts/gpu-check.sh.
fn hardware() -> String {
    let mut cards = BTreeSet::new();
    for entry in std::fs::read_dir(common::root("docs/gpu")).into_iter().flatten().flatten() {
        if entry.path().extension().is_none_or(|e| e != "json") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let report: serde_json::Value = serde_json::from_str(&text).unwrap();
        if report["steps"]["op_matrix"]["status"] == 0 {
            let card = report["steps"]["card"]["tail"].as_str().unwrap_or_default();
            cards.extend(card.lines().nth(1).and_then(|l| l.split(',').next()).map(str::to_owned));
        }
    }
    match cards.is_empty() {
        true => "not run on hardware".into(),
        false => cards.into_iter().collect::<Vec<_>>().join(", "),
    }
}

/// A kernel whose threads need more registers than their number leaves each of them, and texts that are no kernels.
#[test]
fn control_what_spills_or_does_not_compile_is_seen() {
    if Device::ptx(80).is_none() {
        return;
    }
    let compile = |text: &str| cuda::source(text, "control.cu", &options(&[], 80, Output::Cubin), Output::Cubin);
    // All 128 values are needed again behind the barrier; 1024 threads leave each 64 registers.
    let greedy = "#include \"common/types.cuh\"\n\
        extern \"C\" __global__ void __launch_bounds__(1024) control(float* y, const float* x) {\n\
            float v[128], sum = 0.0f;\n\
            #pragma unroll\n\
            for (u32 i = 0; i < 128; i++) { v[i] = x[i * 1024 + threadIdx.x]; sum += v[i]; }\n\
            __syncthreads();\n\
            #pragma unroll\n\
            for (u32 i = 0; i < 128; i++) y[i * 1024 + threadIdx.x] = v[i] * sum;\n\
        }\n";
    let modest = greedy.replace("1024)", "128)");
    let seen = complaints(&compile(greedy).unwrap().log);
    assert!(seen.iter().any(|s| s.contains("control spills")), "{seen:?}");
    let log = compile(&modest).unwrap().log;
    assert_eq!(complaints(&log), Vec::<String>::new());
    assert!(compile("extern \"C\" __global__ void control(float* y) { y = ; }").is_err());
    assert!(complaints("").len() == 1);

    let takes = kernels(&log)["control"];
    assert!(takes.registers > 64, "{takes:?}");
    let launch = |entry, block, shared| CudaLaunch {
        file: "control",
        defines: Vec::new(),
        entry,
        grid: [1, 1, 1],
        block,
        shared,
        args: Vec::new(),
        params: Vec::new(),
        maps: Vec::new(),
        flops: 0,
    };
    assert_eq!(unstartable(&launch("control", 128, 1000), &log, 1000), None);
    for (launch, what) in [
        (launch("other", 128, 0), "no kernel other"),
        (launch("control", 1024, 0), "registers a block"),
        (launch("control", 1056, 0), "1056 threads"),
        (launch("control", 128, 1001), "shared memory"),
        (CudaLaunch { grid: [1, 65536, 1], ..launch("control", 128, 0) }, "a grid of"),
    ] {
        let found = unstartable(&launch, &log, 1000);
        assert!(found.as_ref().is_some_and(|f| f.contains(what)), "expected {what:?}, found {found:?}");
    }
}
