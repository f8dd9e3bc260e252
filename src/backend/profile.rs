//! Where a device's time goes: any backend, with each launch run alone, waited for and timed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Backend, Buffer, Caps, HostSlice, Launch, Point, Recording, Slice};
use crate::error::Result;

/// What the launches of one op took together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpTime {
    /// Name of the op.
    pub op: String,
    /// Number of launches.
    pub launches: u64,
    /// From when the device has nothing to do until it has nothing to do again; by its own clock, where it has one.
    pub time: Duration,
    /// By the rows' cost: for attention that of sequences as long as the longest may be.
    pub flops: u64,
    /// Of all operands and scratch memory, each taken as a whole; an embedding reads less of its table.
    pub bytes: u64,
}

/// The times so far. Clones share them: one stays with the backend, one with whoever reads them.
#[derive(Clone, Default)]
pub struct Profile(Arc<Mutex<Vec<OpTime>>>);

impl Profile {
    fn lock(&self) -> MutexGuard<'_, Vec<OpTime>> {
        // Sums are whole after every launch, whatever happened to a thread that held them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins anew.
    pub fn reset(&self) {
        for op in self.lock().iter_mut() {
            *op = OpTime { op: std::mem::take(&mut op.op), ..OpTime::default() };
        }
    }

    /// The ops that ran, the longest first.
    pub fn ops(&self) -> Vec<OpTime> {
        let mut ops: Vec<OpTime> = self.lock().iter().filter(|o| o.launches > 0).cloned().collect();
        ops.sort_by(|a, b| b.time.cmp(&a.time).then_with(|| a.op.cmp(&b.op)));
        ops
    }

    /// The number of the op of a launch.
    fn index(&self, launch: &Launch) -> usize {
        // A launch is called `site:op` or `site:op/entry`.
        let op = launch.name.rsplit(':').next().unwrap_or_default();
        let op = op.split('/').next().unwrap_or_default();
        let mut ops = self.lock();
        ops.iter().position(|o| o.op == op).unwrap_or_else(|| {
            ops.push(OpTime { op: op.into(), ..OpTime::default() });
            ops.len() - 1
        })
    }
}

/// A launch, recorded alone.
struct Step {
    recording: Recording,
    op: usize,
    flops: u64,
    bytes: u64,
}

/// A backend that keeps a [`Profile`], but for what is timed as a whole. Results are the other's, to the bit. On a GPU the
/// waiting makes a step longer than without, since launches no longer overlap and each pays for its submission; parameter
/// blocks are no longer shared between launches there, so a little more memory is taken than the account says.
pub struct Profiled {
    inner: Box<dyn Backend>,
    lists: Vec<Vec<Step>>,
    profile: Profile,
}

impl Profiled {
    /// Wraps `inner`; the [`Profile`] shows what was measured so far, also while the device is in use.
    pub fn new(inner: Box<dyn Backend>) -> (Profiled, Profile) {
        let profile = Profile::default();
        (Profiled { inner, lists: Vec::new(), profile: profile.clone() }, profile)
    }
}

impl Backend for Profiled {
    fn caps(&self) -> &Caps {
        self.inner.caps()
    }

    fn alloc(&mut self, bytes: u64) -> Result<Buffer> {
        self.inner.alloc(bytes)
    }

    fn free(&mut self, buffer: Buffer) {
        self.inner.free(buffer);
    }

    fn memory(&self) -> u64 {
        self.inner.memory()
    }

    fn free_memory(&self) -> Option<u64> {
        self.inner.free_memory()
    }

    fn upload(&mut self, dst: Slice, src: &[u8]) -> Result<()> {
        self.inner.upload(dst, src)
    }

    fn point(&mut self) -> Result<Point> {
        self.inner.point()
    }

    fn upload_after(&mut self, point: Point, dst: Slice, src: &[u8]) -> Result<()> {
        self.inner.upload_after(point, dst, src)
    }

    fn staging(&mut self, bytes: u64) -> Result<Option<HostSlice>> {
        self.inner.staging(bytes)
    }

    fn settle(&mut self, memory: HostSlice) -> Result<()> {
        self.inner.settle(memory)
    }

    fn download(&mut self, src: Slice, dst: &mut [u8]) -> Result<()> {
        self.inner.download(src, dst)
    }

    unsafe fn download_into(&mut self, src: Slice, dst: HostSlice) -> Result<()> {
        // SAFETY: the caller gives the range.
        unsafe { self.inner.download_into(src, dst) }
    }

    fn copy(&mut self, dst: Slice, src: Slice) -> Result<()> {
        self.inner.copy(dst, src)
    }

    fn host(&mut self, slice: Slice) -> Result<Option<HostSlice>> {
        self.inner.host(slice)
    }

    fn record(&mut self, launches: &[Launch]) -> Result<Recording> {
        let mut steps = Vec::with_capacity(launches.len());
        for launch in launches {
            steps.push(Step {
                recording: self.inner.record(std::slice::from_ref(launch))?,
                op: self.profile.index(launch),
                flops: launch.flops,
                bytes: launch.args.iter().map(|a| a.bytes).sum(),
            });
        }
        self.lists.push(steps);
        Ok(Recording(self.lists.len() as u32 - 1))
    }

    fn replay(&mut self, recording: Recording) -> Result<()> {
        self.inner.sync()?;
        for step in &self.lists[recording.0 as usize] {
            let time = self.inner.replay_timed(step.recording)?;
            let op = &mut self.profile.lock()[step.op];
            op.launches += 1;
            op.time += time;
            op.flops += step.flops;
            op.bytes += step.bytes;
        }
        Ok(())
    }

    fn replay_timed(&mut self, recording: Recording) -> Result<Duration> {
        let Profiled { inner, lists, .. } = self;
        lists[recording.0 as usize].iter().map(|step| inner.replay_timed(step.recording)).sum()
    }

    fn provenance(&self) -> String {
        self.inner.provenance()
    }

    fn forget(&mut self, recording: Recording) {
        for step in self.lists[recording.0 as usize].drain(..) {
            self.inner.forget(step.recording);
        }
    }

    fn sync(&mut self) -> Result<()> {
        self.inner.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Kernel, cpu::Cpu};

    /// Adds one to each byte, and takes at least `millis`.
    fn launch(name: &str, at: Slice, flops: u64, millis: u64) -> Launch {
        let f = move |args: &[HostSlice]| {
            std::thread::sleep(Duration::from_millis(millis));
            for i in 0..args[0].bytes {
                // SAFETY: the backend gave the range, and nothing else touches it meanwhile.
                unsafe { *args[0].ptr.add(i) += 1 };
            }
        };
        let kernel = Kernel::Host(Arc::new(f));
        Launch { name: name.into(), kernel, args: vec![at], flops }
    }

    #[test]
    fn launches_are_summed_by_op_and_change_no_result() {
        let (mut backend, profile) = Profiled::new(Box::new(Cpu::new()));
        let buffer = backend.alloc(8).unwrap();
        let at = Slice { buffer, offset: 0, bytes: 8 };
        let half = Slice { bytes: 4, ..at };
        let list = [
            launch("model.layers.0:norm", at, 10, 0),
            launch("model.layers.0:linear/first", half, 100, 4),
            launch("model.layers.1:linear/second", at, 100, 4),
        ];
        let recording = backend.record(&list).unwrap();
        assert!(profile.ops().is_empty(), "nothing ran yet");
        for _ in 0..3 {
            backend.replay(recording).unwrap();
        }
        let mut bytes = [0; 8];
        backend.download(at, &mut bytes).unwrap();
        assert_eq!(bytes, [9, 9, 9, 9, 6, 6, 6, 6]);
        let ops = profile.ops();
        let counts: Vec<_> = ops.iter().map(|o| (o.op.as_str(), o.launches, o.flops, o.bytes)).collect();
        assert_eq!(counts, [("linear", 6, 600, 36), ("norm", 3, 30, 24)]);
        // The control: the time is that of the op that slept.
        assert!(ops[0].time >= Duration::from_millis(24) && ops[1].time < ops[0].time, "{ops:?}");

        profile.reset();
        assert!(profile.ops().is_empty());
        backend.replay(recording).unwrap();
        assert_eq!(profile.ops().iter().map(|o| o.launches).collect::<Vec<_>>(), [2, 1]);
        backend.forget(recording);
    }
}
