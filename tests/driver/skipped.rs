//! A run in which calls of the driver are left out, as if the backend forgot them: each is found, or does not matter.

use crate::Training;

/// (call that does nothing, what is found).
const FORGOTTEN: &[(&str, &str)] = &[
    ("cuCtxSetCurrent", "no context is current on this thread"),
    ("cuDevicePrimaryCtxRelease_v2", "the process ends with a context open"),
    ("cuEventDestroy_v2", "released with 3 events in it"),
    ("cuEventRecord", "and nothing orders the two"),
    ("cuEventRecord:1", "and nothing orders the two"),
    ("cuEventRecord:2", "the host touches byte 0 of pinned memory"),
    ("cuEventSynchronize", "the host touches byte 0 of pinned memory"),
    ("cuEventSynchronize:3", "the host touches byte 0 of pinned memory"),
    ("cuGraphDestroy", "released with 2 graphs in it"),
    ("cuGraphExecDestroy", "released with 2 executable graphs in it"),
    ("cuGraphExecDestroy:2", "released with 1 executable graph in it"),
    ("cuInit", "called before cuInit"),
    ("cuMemFreeHost:2", "released with 1 pinned allocation in it"),
    ("cuMemFree_v2:1", "released with 1 allocation in it"),
    ("cuMemsetD8Async", "which nothing has written"),
    ("cuModuleUnload:4", "released with 1 module in it"),
    ("cuStreamBeginCapture_v2", "is not captured"),
    // The handle is then what its memory held: none, or one of no stream.
    ("cuStreamCreate", "stream"),
    ("cuStreamDestroy_v2:1", "released with 1 stream in it"),
    ("cuStreamEndCapture", "is no graph"),
    ("cuStreamSynchronize", "still writes: it has not waited for it"),
    ("cuStreamSynchronize:1", "still writes: it has not waited for it"),
    ("cuStreamWaitEvent", "and nothing orders the two"),
    ("cuStreamWaitEvent:1", "and nothing orders the two"),
];

/// The same where weights are streamed: copies that wait for earlier points of the kernels, from memory that is filled anew.
const FORGOTTEN_STREAMING: &[(&str, &str)] = &[
    ("cuEventRecord:108", "a copy from the host"),
    ("cuEventRecord:109", "and nothing orders the two"),
    ("cuStreamWaitEvent:115", "a copy from the host"),
    ("cuStreamWaitEvent:116", "and nothing orders the two"),
];

/// The same where values wait off the card: copies from it into memory that a thread then writes to a file. The system refuses
/// to read there what is still copied, so that this is no finding of the driver's.
const FORGOTTEN_OFFLOADING: &[(&str, &str)] = &[
    ("cuEventRecord:117", "a copy to the host"),
    ("cuEventRecord:118", "and nothing orders the two"),
    ("cuStreamWaitEvent:117", "a copy to the host"),
    ("cuStreamWaitEvent:118", "and nothing orders the two"),
    ("cuEventSynchronize:59", REFUSED),
];
const REFUSED: &str = "Bad address";

/// The same where they wait in host memory.
const FORGOTTEN_HOLDING: &[(&str, &str)] = &[
    ("cuEventRecord:119", "a copy to the host"),
    ("cuEventRecord:120", "and nothing orders the two"),
    ("cuEventRecord:122", "a copy from the host"),
    ("cuEventRecord:123", "and nothing orders the two"),
    ("cuStreamWaitEvent:121", "a copy from the host"),
];

/// The same on a Hopper, which is tried when it is opened.
const FORGOTTEN_HOPPER: &[(&str, &str)] = &[("cuTensorMapEncodeTiled:1", "tensor map")];

#[test]
fn each_forgotten_call_is_found() {
    let Some(training) = Training::new("skipped") else { return };
    let own = ["--steps", "1", "--batch-size", "1", "--device", "cuda"];
    training.ok("whole", &own, &[]);
    // The control: a call that only makes the first step quicker.
    training.ok("same", &own, &[("FAKECUDA_SKIP", "cuGraphUpload")]);
    assert_eq!(training.card.steps("same"), training.card.steps("whole"));
    // A page of pinned memory is watched until it is touched, be it beside the copy: where memmove begins depends on where the
    // process has its memory, so that one run in three may not see what the next one sees.
    const TRIES: usize = 12;
    let streaming = [&own[..], &["--stream", "on"]].concat();
    let offloading = [&own[..], &["--offload", "on"]].concat();
    let holding = [&offloading[..], &["--host-memory", "1MiB"]].concat();
    let hopper = [&own[..], &["--dtype", "bf16"]].concat();
    let (usual, newer) = (("FAKECUDA_ARCH", "81"), ("FAKECUDA_ARCH", "91"));
    let rows = FORGOTTEN.iter().map(|row| (&own[..], usual, row));
    let missed: Vec<String> = rows
        .chain(FORGOTTEN_STREAMING.iter().map(|row| (&streaming[..], usual, row)))
        .chain(FORGOTTEN_OFFLOADING.iter().map(|row| (&offloading[..], usual, row)))
        .chain(FORGOTTEN_HOLDING.iter().map(|row| (&holding[..], usual, row)))
        .chain(FORGOTTEN_HOPPER.iter().map(|row| (&hopper[..], newer, row)))
        .filter_map(|(own, card, (call, said))| {
            let mut last = String::new();
            let found = (0..if said.contains("pinned memory") { TRIES } else { 1 }).any(|_| {
                let ran = training.run("broken", own, &[card, ("FAKECUDA_SKIP", call)]);
                last = format!("{call}: {:?}\n{}", ran.code, ran.err);
                let (code, who) = if *said == REFUSED { (1, "error: ") } else { (86, "fakecuda: ") };
                ran.code == Some(code) && ran.err.contains(who) && ran.err.contains(said)
            });
            (!found).then_some(last)
        })
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}
