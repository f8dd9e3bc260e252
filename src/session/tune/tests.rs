//! Choices by given times, on a device that computes numbers which tell kernels apart.

use std::time::Duration;

use super::clock::choice;
use super::kept::{About, Kept};
use super::measured;
use crate::backend::null::Null;
use crate::backend::{Backend, Buffer, Caps, Kernel, Launch, Recording, Slice, Target, Tiling};
use crate::dtype::{DType, Ty};
use crate::error::{Error, Result};
use crate::graph::{Graph, LeafKind};
use crate::ops::matmul::MATMUL;
use crate::ops::{Attr, Matmul};
use crate::plan::{Plan, Tilings};
use crate::system;

fn micros(times: &[u64]) -> Vec<Duration> {
    times.iter().copied().map(Duration::from_micros).collect()
}

#[test]
fn the_least_median_is_chosen_unless_it_is_hardly_less() {
    use Tiling::{Estimated, Large, Middle};
    // The times of each way, in microseconds, and the one to be chosen.
    type Row<'a> = (&'a [(Tiling, &'a [u64])], Tiling);
    let table: [Row; 9] = [
        (&[(Estimated, &[100; 5]), (Large, &[96; 5])], Large),
        (&[(Estimated, &[100; 5]), (Large, &[98; 5])], Estimated),
        (&[(Estimated, &[100; 5]), (Large, &[120; 5])], Estimated),
        // Neighbours that disturb less than half of the runs.
        (&[(Estimated, &[100, 100, 100]), (Large, &[900, 90, 90])], Large),
        (&[(Estimated, &[100, 100, 900, 900, 100]), (Large, &[99, 99, 99, 99, 99])], Estimated),
        // A lucky run is none.
        (&[(Estimated, &[100; 5]), (Large, &[10, 110, 10, 110, 110])], Estimated),
        (&[(Estimated, &[100; 3]), (Large, &[80; 3]), (Middle, &[70; 3])], Middle),
        (&[(Estimated, &[100; 3]), (Large, &[70; 3]), (Middle, &[70; 3])], Large),
        (&[(Estimated, &[7])], Estimated),
    ];
    for (times, expected) in table {
        let given = times.iter().map(|(tiling, times)| (*tiling, micros(times))).collect();
        assert_eq!(choice(given), expected, "{times:?}");
    }
    assert_eq!(choice(Vec::new()), Estimated);
}

/// A launch adds the bytes of its other operands to its first one's first byte.
struct Fake {
    caps: Caps,
    memory: Vec<Option<Vec<u8>>>,
    lists: Vec<Option<Vec<Launch>>>,
    /// Microseconds of the large tiles, and of others.
    times: [u64; 2],
    /// Large tiles add one more.
    wrong: bool,
    /// Bytes of memory.
    room: u64,
    /// Launches whose kernels cannot be had.
    lacks: fn(&Launch) -> bool,
}

impl Fake {
    fn new(times: [u64; 2]) -> Fake {
        let caps = Caps {
            target: Target::Wgsl,
            max_binding: 1 << 27,
            max_buffer: 1 << 28,
            max_groups: 65_535,
            workgroup_memory: 32 << 10,
            max_invocations: 1024,
            max_bindings: 16,
            ..Null::new().caps().clone()
        };
        Fake { caps, memory: Vec::new(), lists: Vec::new(), times, wrong: false, room: u64::MAX, lacks: |_| false }
    }

    fn bytes(&mut self, at: Slice) -> &mut [u8] {
        let room = self.memory[at.buffer.0 as usize].as_mut().expect("it was freed");
        &mut room[at.offset as usize..][..at.bytes as usize]
    }

    /// Nothing is left of what was timed.
    fn is_empty(&self) -> bool {
        self.memory.iter().all(Option::is_none) && self.lists.iter().all(Option::is_none)
    }
}

fn is_large(launch: &Launch) -> bool {
    matches!(&launch.kernel, Kernel::Wgsl(dispatch) if dispatch.defines.contains(&"LARGE"))
}

impl Backend for Fake {
    fn caps(&self) -> &Caps {
        &self.caps
    }
    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        if self.memory() + bytes > self.room {
            return Err(Error::Memory { needed: bytes, available: 0, hint: String::new() });
        }
        self.memory.push(Some(vec![0; bytes as usize]));
        Ok(Buffer(self.memory.len() as u32 - 1))
    }
    fn free(&mut self, buffer: Buffer) {
        self.memory[buffer.0 as usize].take().expect("freed twice");
    }
    fn memory(&self) -> u64 {
        self.memory.iter().flatten().map(|bytes| bytes.len() as u64).sum()
    }
    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        self.bytes(dst).copy_from_slice(src);
        Ok(())
    }
    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        dst.copy_from_slice(self.bytes(src));
        Ok(())
    }
    fn copy(&mut self, _: Slice, _: Slice) -> Result<()> {
        unreachable!("nothing is copied")
    }
    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        if launches.iter().any(self.lacks) {
            return Err(Error::device("fake", "no such kernel", "compile it"));
        }
        self.lists.push(Some(launches.to_vec()));
        Ok(Recording(self.lists.len() as u32 - 1))
    }
    fn replay(&mut self, recording: Recording) -> Result<()> {
        for launch in self.lists[recording.0 as usize].clone().expect("it was forgotten") {
            let more = u8::from(self.wrong && is_large(&launch));
            let add = |sum: u8, &byte: &u8| sum.wrapping_add(byte);
            let sum = launch.args[1..].iter().fold(more, |sum, arg| self.bytes(*arg).iter().fold(sum, add));
            let first = &mut self.bytes(launch.args[0])[0];
            *first = first.wrapping_add(sum);
        }
        Ok(())
    }
    fn replay_timed(&mut self, recording: Recording) -> Result<Duration> {
        self.replay(recording)?;
        let large = self.lists[recording.0 as usize].iter().flatten().any(is_large);
        Ok(Duration::from_micros(self.times[usize::from(!large)]))
    }
    fn forget(&mut self, recording: Recording) {
        self.lists[recording.0 as usize].take().expect("forgotten twice");
    }
    fn sync(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Two products alike and one of another size, a gradient that is added to what is there, and one too thin for a choice.
fn graph() -> Graph {
    let mut g = Graph::new();
    let mut leaf = |kind, name: &str, dtype, shape: &[usize]| g.leaf(kind, name, Ty::new(dtype, shape));
    let (f32, frozen) = (DType::F32, LeafKind::Frozen);
    let x = leaf(LeafKind::Io, "x", f32, &[256, 128]);
    let weights = [("a", 128, f32), ("b", 128, f32), ("c", 64, DType::Nf4Dq)];
    let weights = weights.map(|(name, rows, dtype)| leaf(frozen, name, dtype, &[rows, 128]));
    let thin = leaf(frozen, "thin", f32, &[128, 16]);
    let grad = leaf(LeafKind::Grad, "grad", f32, &[128, 128]);
    let [y, z, _] = weights.map(|w| g.linear(x, w, None, None).unwrap());
    g.matmul(x, false, thin, false, 1.0).unwrap();
    let attr = Matmul { ta: true, tb: false, alpha: 1.0, acc: true };
    g.node_into(&MATMUL, Attr::Matmul(attr), &[y, z, grad], &[Some(grad)]).unwrap();
    g
}

/// What is chosen on `fake`, and what was said.
fn chosen(fake: &mut Fake, plan: &Plan, g: &Graph) -> (Tilings, Vec<String>) {
    let mut said = Vec::new();
    let all = plan.variants(g).unwrap();
    let names: Vec<&str> = all.iter().map(|batch| batch.key.split('(').next().unwrap()).collect();
    assert_eq!(names, ["linear", "linear", "matmul"]);
    let found = measured(fake, &all, &mut |text| {
        said.push(text);
        Ok(())
    });
    assert!(fake.is_empty(), "something is left on the device");
    (found.unwrap(), said)
}

/// How many launches are of large tiles.
fn large(plan: &Plan) -> usize {
    plan.launches.iter().flatten().filter(|launch| is_large(launch)).count()
}

#[test]
fn times_decide_and_the_account_stays() {
    let g = graph();
    for (times, expected) in [([50, 100], 4), ([98, 100], 0), ([100, 50], 0)] {
        let mut fake = Fake::new(times);
        let mut plan = Plan::new(&g, fake.caps()).unwrap();
        let (account, launches) = (plan.account.clone(), plan.launches[0].len());
        let (found, said) = chosen(&mut fake, &plan, &g);
        assert_eq!((found.len(), said.len(), large(&plan)), (3, 0, 0));
        plan.tile(&g, &found).unwrap();
        assert_eq!(large(&plan), expected, "{times:?}");
        // As before, but for the tiles.
        assert_eq!((plan.launches[0].len(), plan.account.total), (launches, account.total));
        plan.tile(&g, &Tilings::new()).unwrap();
        assert_eq!(large(&plan), 0);
    }
}

/// The control: what is faster and gives other bits is found, and not taken.
#[test]
fn what_changes_bits_is_not_chosen() {
    let g = graph();
    let mut fake = Fake { wrong: true, ..Fake::new([1, 100]) };
    let mut plan = Plan::new(&g, fake.caps()).unwrap();
    let (found, said) = chosen(&mut fake, &plan, &g);
    assert!(said.len() == 3 && said.iter().all(|text| text.contains("gives other bits")), "{said:?}");
    plan.tile(&g, &found).unwrap();
    assert_eq!((found.len(), large(&plan)), (3, 0));
}

/// Where a program has machine code of some kernels and no compiler, it does with those; without any, nothing runs.
#[test]
fn what_has_no_kernel_is_not_chosen() {
    let g = graph();
    let mut fake = Fake { lacks: is_large, ..Fake::new([1, 100]) };
    let plan = Plan::new(&g, fake.caps()).unwrap();
    let (found, said) = chosen(&mut fake, &plan, &g);
    assert!(said.is_empty() && found.values().eq([&Tiling::Estimated; 3]), "{found:?} {said:?}");
    fake.lacks = |_| true;
    let error = measured(&mut fake, &plan.variants(&g).unwrap(), &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("no such kernel") && fake.is_empty(), "{error}");
}

/// A batch that does not fit is left to the estimate, and to another time.
#[test]
fn what_has_no_room_is_not_timed() {
    let g = graph();
    // The weight of the last linear layer is smaller.
    let room = 4 * (2 * 256 * 128 + 64 * 128);
    let mut fake = Fake { room, ..Fake::new([50, 100]) };
    let plan = Plan::new(&g, fake.caps()).unwrap();
    let (found, said) = chosen(&mut fake, &plan, &g);
    assert!(said.len() == 2 && said.iter().all(|text| text.contains("no memory")), "{said:?}");
    assert_eq!(found.values().collect::<Vec<_>>(), [&Tiling::Large]);
}

/// What a batch takes for its times is never more than its plan has.
#[test]
fn no_more_memory_is_taken_than_the_plans() {
    let g = graph();
    let caps = Fake::new([1, 1]).caps;
    let plan = Plan::new(&g, &caps).unwrap();
    let room = plan.buffers.iter().map(|buffer| buffer.bytes).sum();
    let mut fake = Fake { room, ..Fake::new([50, 100]) };
    assert_eq!(chosen(&mut fake, &plan, &g).0.len(), 3);
}

#[test]
fn a_file_comes_back_or_is_refused() {
    let dir = system::temp_dir().join(format!("trimtab-tiles-{}", system::process_id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("tiles.json");
    let about = |device: &str| About { device: device.into(), processors: Some(3), kernels: "k".into() };
    let open = |device: &str, is_cache| Kept::at(Some(path.clone()), is_cache, about(device));
    let mut kept = open("a card", false).unwrap();
    assert!(kept.tilings.is_empty());
    kept.tilings.insert("a product".into(), Tiling::Large);
    kept.tilings.insert("another".into(), Tiling::Estimated);
    assert!(kept.write().unwrap().contains("tiles.json"));
    assert_eq!(open("a card", false).unwrap().tilings, kept.tilings);

    // Of another device: an error that says what to do, or, in the cache, nothing.
    let refused = |found: Result<Kept>| found.err().map(|e| e.to_string()).unwrap_or_default();
    let found = refused(open("another card", false));
    assert!(found.contains("tiles for a card, 3 multiprocessors, k") && found.contains("delete it"), "{found}");
    assert!(open("another card", true).unwrap().tilings.is_empty());

    let whole = std::fs::read_to_string(&path).unwrap();
    let cuts = (0..whole.trim_end().len()).map(|n| whole[..n].to_owned());
    let odd = [whole.replace("large", "huge"), whole.replace("tilings", "tiles"), "[]".into()];
    for damaged in cuts.chain(odd) {
        std::fs::write(&path, &damaged).unwrap();
        let found = refused(open("a card", false));
        assert!(found.contains("tiles.json") && found.contains("delete it"), "{damaged:?}: {found}");
        assert!(open("a card", true).unwrap().tilings.is_empty(), "{damaged:?}");
    }
    // A damaged cache is replaced; one that cannot be written is done without.
    let mut cache = open("a card", true).unwrap();
    cache.tilings = kept.tilings.clone();
    cache.write().unwrap();
    assert_eq!(open("a card", true).unwrap().tilings, kept.tilings);
    let nowhere = path.join("below a file");
    assert_eq!(Kept::at(Some(nowhere.clone()), true, about("a card")).unwrap().write().unwrap(), "");
    assert!(Kept::at(Some(nowhere), false, about("a card")).is_err());
    std::fs::remove_dir_all(&dir).unwrap();
}
