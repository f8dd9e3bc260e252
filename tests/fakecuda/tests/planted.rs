//! Programs that call the driver wrongly, each in one way, beside the right one: the fake driver finds each.
#![cfg(target_os = "linux")]

use std::ffi::c_void;
use std::ptr::null_mut;

use fakecuda::*;

/// `add` adds `by` to `n` values of `a`, into `b`; with dynamic shared memory if asked for.
const PTX: &std::ffi::CStr = c"
.version 8.0
.target sm_80
.address_size 64
.extern .shared .align 4 .b8 room[];
.visible .entry add(
    .param .u64 add_param_0,
    .param .u64 add_param_1,
    .param .u32 add_param_2,
    .param .u32 add_param_3
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<7>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [add_param_0];
    ld.param.u64 %rd2, [add_param_1];
    ld.param.u32 %r1, [add_param_2];
    ld.param.u32 %r2, [add_param_3];
    mov.u32 %r3, %tid.x;
    setp.ge.u32 %p1, %r3, %r1;
    @%p1 bra $L__end;
    cvta.to.global.u64 %rd3, %rd1;
    cvta.to.global.u64 %rd4, %rd2;
    mul.wide.u32 %rd5, %r3, 4;
    add.s64 %rd6, %rd3, %rd5;
    add.s64 %rd7, %rd4, %rd5;
    ld.global.u32 %r4, [%rd6];
    add.s32 %r5, %r4, %r2;
    st.global.u32 [%rd7], %r5;
$L__end:
    ret;
}
";
const NEWER: &std::ffi::CStr = c".version 8.7\n.target sm_100\n.address_size 64\n";
const MACHINE_CODE: &std::ffi::CStr = c"\x7fELF of some card";

const N: usize = 8;
const BYTES: usize = 4 * N;
const NON_BLOCKING: u32 = 1;
const NO_TIME: u32 = 2;
const THREAD_LOCAL: u32 = 1;
const MAX_DYNAMIC_SHARED: i32 = 8;

/// One way to be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    KernelWaitsForNoUpload,
    DownloadWaitsForNoKernel,
    EventOnTheWrongStream,
    UploadWaitsForNoKernel,
    KernelOutOfItsCapture,
    GraphOnTheStreamOfCopies,
    HostReadsEarly,
    HostWritesEarly,
    FreedEarly,
    FreedTwice,
    FreedInTheMiddle,
    CopyPastTheEnd,
    CopyPastPinned,
    CopyToNowhere,
    KernelPastTheEnd,
    NothingWritten,
    NothingUploaded,
    SharedWithoutAsking,
    SharedTooMuch,
    SmallParameter,
    NoParameters,
    ParameterNowhere,
    NoBlocks,
    WideBlock,
    AllocatesInCapture,
    WaitsInCapture,
    LoadsInCapture,
    DependsOutOfCapture,
    AnotherThreadEnds,
    CapturedTwice,
    LeaksMemory,
    LeaksPinned,
    LeaksStream,
    LeaksEvent,
    LeaksModule,
    LeaksGraph,
    LeaksExec,
    NoContext,
    NoContextOnAThread,
    AnothersContext,
    ContextIsGone,
    ReleasedTwice,
    NotStarted,
    EventIsGone,
    EventForAStream,
    GraphIsGone,
    ModuleIsGone,
    UnloadedEarly,
    UnpinnedEarly,
    DefaultStream,
    BlockingStream,
    TimeTooEarly,
    TimeOfNone,
    NewerText,
    MachineCode,
    NoSuchCard,
}
use Bug::*;

/// Each with what is said of it.
const BUGS: &[(Bug, &str)] = &[
    (KernelWaitsForNoUpload, "kernel add on stream 0x200000000 reads bytes 0 to 32 of the allocation of 32 bytes"),
    (DownloadWaitsForNoKernel, "which kernel add on stream 0x200000000 writes, and nothing orders the two"),
    (EventOnTheWrongStream, "which kernel add on stream 0x200000000 writes, and nothing orders the two"),
    (UploadWaitsForNoKernel, "which kernel add on stream 0x200000000 reads, and nothing orders the two"),
    (KernelOutOfItsCapture, "of buffer 'allocation of 32 bytes', which nothing has written"),
    (GraphOnTheStreamOfCopies, "which a set on stream 0x200000000 writes, and nothing orders the two"),
    (
        HostReadsEarly,
        "the host touches byte 0 of pinned memory that a copy to the host on stream 0x200000010 still writes",
    ),
    (
        HostWritesEarly,
        "the host touches byte 4 of pinned memory that a copy from the host on stream 0x200000010 still reads",
    ),
    (FreedEarly, "which are not in one allocation"),
    (FreedTwice, "is no allocation, or was freed before"),
    (FreedInTheMiddle, "is no allocation, or was freed before"),
    (CopyPastTheEnd, "writes 36 bytes"),
    (CopyPastPinned, "a copy goes 4 bytes past pinned memory of 32 bytes"),
    (CopyToNowhere, "of the host are not in memory"),
    (KernelPastTheEnd, "read of 4 bytes at offset 32 of buffer 'allocation of 32 bytes' of 32 bytes"),
    (NothingWritten, "which nothing has written"),
    (NothingUploaded, "which nothing has written"),
    (SharedWithoutAsking, "65536 bytes of dynamic shared memory and 0 of its own, of which it was allowed 0"),
    (SharedTooMuch, "200000 bytes of shared memory and 0, of 166912"),
    (SmallParameter, "parameter 1 has 8 bytes, but within them is parameter 2"),
    (NoParameters, "the list of its 4 parameters is not in memory"),
    (ParameterNowhere, "parameter 3 of 4 bytes is at 0x0, where no such value is"),
    (NoBlocks, "a grid of [0, 1, 1] blocks"),
    (WideBlock, "blocks of [2048, 1, 1]"),
    (AllocatesInCapture, "cuMemAlloc_v2: not allowed while stream 0x200000000 is captured"),
    (WaitsInCapture, "cuStreamSynchronize: stream 0x200000000 is captured"),
    (LoadsInCapture, "cuModuleLoadData: not allowed while stream 0x200000000 is captured"),
    (DependsOutOfCapture, "a captured stream waits for work that is not captured"),
    (AnotherThreadEnds, "another thread began this capture"),
    (CapturedTwice, "the stream is captured already"),
    (LeaksMemory, "released with 1 allocation in it"),
    (LeaksPinned, "released with 1 pinned allocation in it"),
    (LeaksStream, "released with 1 stream in it"),
    (LeaksEvent, "released with 1 event in it"),
    (LeaksModule, "released with 1 module in it"),
    (LeaksGraph, "released with 1 graph in it"),
    (LeaksExec, "released with 1 executable graph in it"),
    (NoContext, "no context is current on this thread"),
    (NoContextOnAThread, "no context is current on this thread"),
    (AnothersContext, "stream 0x200000000 is not of the context that is current on this thread"),
    (ContextIsGone, "the thread's current context 0x100000000 was destroyed before"),
    (ReleasedTwice, "card 0 has no context that is open"),
    (NotStarted, "called before cuInit"),
    (EventIsGone, "event 0x300000000 was destroyed before"),
    (EventForAStream, "0x300000000 is no stream"),
    (GraphIsGone, "executable graph 0x700000000 was destroyed before"),
    (ModuleIsGone, "function 0x500000000 was destroyed before"),
    (UnloadedEarly, "the host has not waited for kernels of this module"),
    (UnpinnedEarly, "the host has not waited for a copy to the host on stream 0x200000010 in this memory"),
    (DefaultStream, "the default stream is used"),
    (BlockingStream, "a stream that the default stream waits for is not modelled"),
    (TimeTooEarly, "the host has not waited for event"),
    (TimeOfNone, "has no time: it was not recorded, or made without"),
    (NewerText, "PTX for sm_100 on a card of sm_81"),
    (MachineCode, "a module of machine code"),
    (NoSuchCard, "there is no card 2"),
];

/// The code of a call as a result.
fn ok(code: u32) -> Result<(), u32> {
    if code == 0 { Ok(()) } else { Err(code) }
}

/// Calls something that writes its result.
fn made<T: Default>(call: impl FnOnce(*mut T) -> u32) -> Result<T, u32> {
    let mut value = T::default();
    ok(call(&mut value)).map(|()| value)
}

/// What a call does on a thread of its own.
fn elsewhere(call: impl FnOnce() -> u32 + Send) -> u32 {
    std::thread::scope(|scope| scope.spawn(call).join().unwrap())
}

/// Uploads numbers, adds to them by a graph, downloads them: twice, with the same memory. The bug is in one place.
fn program(bug: Bug) -> Result<Vec<u32>, u32> {
    // SAFETY: the pointers are to values that live, but where a bug is that they are not, which the driver must find.
    unsafe {
        let unless = |which: Bug, call: &dyn Fn() -> u32| if bug == which { Ok(()) } else { ok(call()) };
        unless(NotStarted, &|| cuInit(0))?;
        ok(cuDeviceGet(&mut 0, if bug == NoSuchCard { 2 } else { 0 }))?;
        let context: usize = made(|p| cuDevicePrimaryCtxRetain(p, 0))?;
        unless(NoContext, &|| cuCtxSetCurrent(context))?;
        let compute: usize = made(|p| cuStreamCreate(p, if bug == BlockingStream { 0 } else { NON_BLOCKING }))?;
        let copies: usize = made(|p| cuStreamCreate(p, NON_BLOCKING))?;
        let (uploaded, computed): (usize, usize) =
            (made(|p| cuEventCreate(p, NO_TIME))?, made(|p| cuEventCreate(p, NO_TIME))?);
        let (began, ended): (usize, usize) =
            (made(|p| cuEventCreate(p, 0))?, made(|p| cuEventCreate(p, if bug == TimeOfNone { NO_TIME } else { 0 }))?);
        let (mut a, b): (u64, u64) = (made(|p| cuMemAlloc_v2(p, BYTES))?, made(|p| cuMemAlloc_v2(p, BYTES))?);
        let pin = || {
            let mut pinned: *mut c_void = null_mut();
            ok(cuMemHostAlloc(&mut pinned, BYTES, 0)).map(|()| pinned.cast::<u32>())
        };
        let (up, down) = (pin()?, pin()?);

        let image = match bug {
            NewerText => NEWER,
            MachineCode => MACHINE_CODE,
            _ => PTX,
        };
        let module: usize = made(|p| cuModuleLoadData(p, image.as_ptr().cast()))?;
        let add: usize = made(|p| cuModuleGetFunction(p, module, c"add".as_ptr()))?;
        let shared = 64 << 10;
        let asked = if bug == SharedTooMuch { 200_000 } else { shared as i32 };
        unless(SharedWithoutAsking, &|| cuFuncSetAttribute(add, MAX_DYNAMIC_SHARED, asked))?;
        if bug == FreedEarly {
            ok(cuMemFree_v2(a))?;
        }
        if bug == FreedInTheMiddle {
            ok(cuMemFree_v2(a + 16))?;
        }

        ok(cuStreamBeginCapture_v2(compute, THREAD_LOCAL))?;
        match bug {
            AllocatesInCapture => ok(cuMemAlloc_v2(&mut 0, 16))?,
            WaitsInCapture => ok(cuStreamSynchronize(compute))?,
            LoadsInCapture => ok(cuModuleLoadData(&mut 0, PTX.as_ptr().cast()))?,
            CapturedTwice => ok(cuStreamBeginCapture_v2(compute, THREAD_LOCAL))?,
            DependsOutOfCapture => {
                ok(cuEventRecord(uploaded, copies))?;
                ok(cuStreamWaitEvent(compute, uploaded, 0))?;
            }
            _ => {}
        }
        let (mut to, mut n, mut by) = (b, if bug == KernelPastTheEnd { N as u32 + 1 } else { N as u32 }, 5u32);
        let mut narrow = [0u32; 3];
        let mut params: [*mut c_void; 4] =
            [(&raw mut a).cast(), (&raw mut to).cast(), (&raw mut n).cast(), (&raw mut by).cast()];
        match bug {
            SmallParameter => {
                // A place of 8 bytes that holds two values of 4.
                let place = narrow.as_mut_ptr().add(narrow.as_ptr().align_offset(8));
                params[1] = place.cast();
                params[2] = place.add(1).cast();
            }
            ParameterNowhere => params[3] = null_mut(),
            _ => {}
        }
        let list = if bug == NoParameters { null_mut() } else { params.as_mut_ptr() };
        let on = match bug {
            DefaultStream => 0,
            KernelOutOfItsCapture => copies,
            _ => compute,
        };
        let blocks = if bug == NoBlocks { 0 } else { 1 };
        let threads = if bug == WideBlock { 2048 } else { 32 };
        ok(cuLaunchKernel(add, blocks, 1, 1, threads, 1, 1, shared, on, list, null_mut()))?;
        if bug == AnotherThreadEnds {
            ok(elsewhere(|| cuCtxSetCurrent(context) | cuStreamEndCapture(compute, &mut 0)))?;
        }
        let graph: usize = made(|p| cuStreamEndCapture(compute, p))?;
        let exec: usize = made(|p| cuGraphInstantiateWithFlags(p, graph, 0))?;
        unless(LeaksGraph, &|| cuGraphDestroy(graph))?;
        ok(cuGraphUpload(exec, compute))?;
        // The driver copied the parameters.
        (to, n, by) = (0, 0, 0);
        assert_eq!((to, n, by), (0, 0, 0));

        let mut results = Vec::new();
        for round in 0..2u32 {
            (0..N).for_each(|i| up.add(i).write(i as u32 + 100 * round));
            let size = if bug == CopyPastTheEnd { BYTES + 4 } else { BYTES };
            let long = [0u32; N + 1];
            let from: *const c_void = match bug {
                CopyPastTheEnd => long.as_ptr().cast(),
                CopyPastPinned => up.add(1).cast(),
                CopyToNowhere => 16 as *const c_void,
                _ => up.cast(),
            };
            if round > 0 {
                unless(UploadWaitsForNoKernel, &|| cuStreamWaitEvent(copies, computed, 0))?;
            }
            unless(NothingUploaded, &|| cuMemcpyHtoDAsync_v2(a, from, size, copies))?;
            if bug == HostWritesEarly && round == 0 {
                up.add(1).write_volatile(7);
            }
            if bug == EventIsGone {
                ok(cuEventDestroy_v2(uploaded))?;
            }
            ok(cuEventRecord(uploaded, copies))?;
            let waits = if bug == EventForAStream { uploaded } else { compute };
            unless(KernelWaitsForNoUpload, &|| cuStreamWaitEvent(waits, uploaded, 0))?;

            ok(cuEventRecord(began, compute))?;
            if bug == GraphIsGone {
                ok(cuGraphExecDestroy(exec))?;
            }
            if bug == ModuleIsGone {
                ok(cuModuleUnload(module))?;
            }
            unless(NothingWritten, &|| cuMemsetD8Async(b, 0, BYTES, compute))?;
            let on = if bug == GraphOnTheStreamOfCopies { copies } else { compute };
            unless(NothingWritten, &|| cuGraphLaunch(exec, on))?;
            ok(cuEventRecord(ended, compute))?;
            ok(cuEventRecord(computed, if bug == EventOnTheWrongStream { copies } else { compute }))?;

            if bug == NoContextOnAThread {
                ok(elsewhere(|| cuStreamSynchronize(compute)))?;
            }
            if bug == UploadWaitsForNoKernel {
                // What a host that does not wait for the room either would come to.
                ok(cuEventSynchronize(uploaded))?;
                ok(cuMemcpyHtoDAsync_v2(a, from, size, copies))?;
            }
            unless(DownloadWaitsForNoKernel, &|| cuStreamWaitEvent(copies, computed, 0))?;
            ok(cuMemcpyDtoHAsync_v2(down.cast(), b, BYTES, copies))?;
            if bug == HostReadsEarly && round == 0 {
                results.push(down.read_volatile());
            }
            if bug == TimeTooEarly {
                ok(cuEventElapsedTime_v2(&mut 0.0, began, ended))?;
            }
            if bug == UnpinnedEarly {
                ok(cuMemFreeHost(down.cast()))?;
            }
            if bug == UnloadedEarly {
                ok(cuModuleUnload(module))?;
            }
            if bug == AnothersContext {
                let other: usize = made(|p| cuDevicePrimaryCtxRetain(p, 1))?;
                ok(cuCtxSetCurrent(other))?;
            }
            ok(cuStreamSynchronize(compute))?;
            ok(cuStreamSynchronize(copies))?;
            let time: f32 = made(|p| cuEventElapsedTime_v2(p, began, ended))?;
            assert!(time > 0.0);
            results.extend((0..N).map(|i| down.add(i).read()));
        }

        unless(LeaksExec, &|| cuGraphExecDestroy(exec))?;
        unless(LeaksModule, &|| cuModuleUnload(module))?;
        for event in [computed, began, ended] {
            ok(cuEventDestroy_v2(event))?;
        }
        unless(LeaksEvent, &|| cuEventDestroy_v2(uploaded))?;
        ok(cuMemFreeHost(up.cast()))?;
        unless(LeaksPinned, &|| cuMemFreeHost(down.cast()))?;
        ok(cuMemFree_v2(a))?;
        if bug == FreedTwice {
            ok(cuMemFree_v2(a))?;
        }
        unless(LeaksMemory, &|| cuMemFree_v2(b))?;
        ok(cuStreamDestroy_v2(copies))?;
        unless(LeaksStream, &|| cuStreamDestroy_v2(compute))?;
        ok(cuDevicePrimaryCtxRelease_v2(0))?;
        match bug {
            ReleasedTwice => ok(cuDevicePrimaryCtxRelease_v2(0))?,
            ContextIsGone => ok(cuCtxSynchronize())?,
            _ => {}
        }
        Ok(results)
    }
}

#[test]
fn each_bug_is_found_and_the_right_program_has_none() {
    for schedule in 0..5 {
        fresh(Settings { schedule, ..Settings::default() });
        let right: Vec<u32> = (0..2).flat_map(|round| (0..N as u32).map(move |i| i + 100 * round + 5)).collect();
        assert_eq!(program(None), Ok(right));
        assert_eq!(findings(), [""; 0]);
    }
    let mut missed = Vec::new();
    for &(bug, text) in BUGS {
        fresh(Settings { cards: 2, ..Settings::default() });
        let ended = program(bug);
        let found = findings();
        // What only the end shows, or the host did, no call can refuse.
        let silent = format!("{bug:?}").starts_with("Leaks") || matches!(bug, HostReadsEarly | HostWritesEarly);
        if found.len() != 1 || !found[0].contains(text) || ended.is_ok() != silent {
            missed.push(format!("{bug:?} ended with {ended:?}: {found:#?}"));
        }
    }
    assert!(missed.is_empty(), "\n{}", missed.join("\n"));
    what_a_card_may_do_to_a_right_program();
}

/// Memory that runs out, a card that is lost, a call that fails: errors as they come, and no finding.
fn what_a_card_may_do_to_a_right_program() {
    let failure = |call: &str, nth, code| Settings {
        failures: vec![fakecuda::Failure { call: call.into(), nth, code }],
        ..Settings::default()
    };
    let cases = [
        (Settings { memory: BYTES as u64 + 1, ..Settings::default() }, 2),
        (failure("cuMemAlloc_v2", 2, 2), 2),
        (failure("cuGraphLaunch", 2, 46), 46),
        (Settings { lose: Some((0, 719)), ..Settings::default() }, 719),
        (Settings { lose: Some((1, 46)), ..Settings::default() }, 46),
    ];
    for (settings, code) in cases {
        fresh(settings.clone());
        assert_eq!(program(None), Err(code), "{settings:?}");
        assert_eq!(findings(), [""; 0], "{settings:?}");
    }
}
