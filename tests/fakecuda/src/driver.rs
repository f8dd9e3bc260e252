//! The driver's state, and what every call goes through.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use ptxsim::{Memory, Module};

use crate::abi::{self, Code};
use crate::blas::Object;
use crate::clock::{Actor, Clock, HOST};
use crate::history::{History, Mark};
use crate::kernels::Op;
use crate::settings::Settings;
use crate::table::Table;
use crate::{pages, report};

/// Why a call does not succeed.
pub enum Refusal {
    /// As told, or as a right program may meet it.
    Code(Code),
    /// A rule was broken: what a driver would return, and what was found.
    Found(Code, String),
}

pub type Answer<T = ()> = Result<T, Refusal>;

/// A broken rule.
pub fn found<T>(code: Code, text: impl Into<String>) -> Answer<T> {
    Err(Refusal::Found(code, text.into()))
}

/// Handles that are wrong.
pub trait Handle<T> {
    fn handle(self) -> Answer<T>;
}

impl<T> Handle<T> for Result<T, String> {
    fn handle(self) -> Answer<T> {
        self.map_err(|text| Refusal::Found(abi::INVALID_HANDLE, text))
    }
}

/// A primary context.
pub struct Context {
    pub card: i32,
    pub users: u32,
}

pub struct Stream {
    pub context: usize,
    pub actor: Actor,
    pub clock: Clock,
    pub capture: Option<Capture>,
}

/// A stream whose work is written down instead of done.
pub struct Capture {
    pub mode: u32,
    pub thread: ThreadId,
    pub ops: Vec<Op>,
    /// What ended it before its time.
    pub broken: bool,
}

/// A point of a stream.
pub struct Point {
    pub clock: Clock,
    /// By the card's clock, in nanoseconds.
    pub time: u64,
    pub captured: bool,
}

pub struct Event {
    pub context: usize,
    pub timed: bool,
    pub point: Option<Point>,
}

/// Device or pinned memory.
pub struct Block {
    pub context: usize,
    pub bytes: u64,
    pub history: History,
}

pub struct Loaded {
    pub context: usize,
    pub code: Arc<Module>,
    /// Where each stream last ran something of it.
    pub ran: Clock,
}

pub struct Function {
    pub module: usize,
    pub entry: String,
    /// Dynamic shared memory that it asked for.
    pub shared: u32,
}

pub struct Graph {
    pub context: usize,
    pub ops: Vec<Op>,
}

pub struct Driver {
    pub settings: Settings,
    pub started: bool,
    pub lost: bool,
    pub memory: Memory,
    /// Device memory by address.
    pub blocks: BTreeMap<u64, Block>,
    /// Pinned memory by address.
    pub pinned: BTreeMap<u64, Block>,
    pub flights: Vec<pages::Flight>,
    /// The cards' primary contexts that are open.
    pub contexts: Table<Context>,
    pub streams: Table<Stream>,
    pub events: Table<Event>,
    pub modules: Table<Loaded>,
    pub functions: Table<Function>,
    pub graphs: Table<Graph>,
    pub execs: Table<Graph>,
    /// Of cuBLASLt, which knows no contexts.
    pub blas: Table<Object>,
    pub host: Clock,
    pub actors: Actor,
    /// The card's clock, in nanoseconds.
    pub now: u64,
    pub used: u64,
    pub peak: u64,
    pub kernels: u64,
    /// Bytes copied to the card that need not wait for all work that other streams had been given.
    pub beside: u64,
    pub replays: usize,
    pub calls: BTreeMap<&'static str, u64>,
    pub findings: Vec<String>,
    /// The code that the running call has been told to return.
    pub told: Option<Code>,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

thread_local! {
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

fn lock() -> MutexGuard<'static, Option<Driver>> {
    DRIVER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins anew with a card like this. For tests that call this library instead of loading it, one at a time.
pub fn fresh(settings: Settings) {
    pages::open_all();
    CURRENT.set(0);
    *lock() = Some(Driver::new(settings));
}

/// What was found since [`fresh`].
pub fn findings() -> Vec<String> {
    let mut found = lock().as_ref().map(|driver| driver.findings.clone()).unwrap_or_default();
    found.extend(pages::findings());
    found
}

/// What the report says; for its writer.
pub(crate) fn summary(tell: impl FnOnce(&mut Driver)) {
    if let Some(driver) = lock().as_mut() {
        tell(driver);
    }
}

/// Calls that a capture of the calling thread does not allow.
const UNSAFE_IN_CAPTURE: &[&str] = &[
    "cuCtxSynchronize",
    "cuDevicePrimaryCtxRelease_v2",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuModuleLoadData",
    "cuModuleUnload",
];

/// Calls that not every driver of CUDA 12 has, and the first that does.
const LATER: &[(&str, i32)] = &[("cuEventElapsedTime_v2", 12_080)];

/// Calls that come before all others.
const STARTS: &[&str] = &["cuDriverGetVersion", "cuInit"];

/// Calls that a card need not be there for.
const WITHOUT_CARD: &[&str] = &["cuCtxSetCurrent", "cuDriverGetVersion", "cuInit"];

/// Calls that end something also where they tell of an error, which is mostly one of work before them.
const ENDS: &[&str] = &[
    "cuDevicePrimaryCtxRelease_v2",
    "cuEventDestroy_v2",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
];

/// One call: told failures first, then what it does; what is found ends the process, if so set.
pub fn enter(name: &'static str, call: impl FnOnce(&mut Driver) -> Answer) -> Code {
    let mut guard = lock();
    let driver = match &mut *guard {
        Some(driver) => driver,
        none => match Settings::read() {
            Ok(settings) => none.insert(Driver::new(settings)),
            Err(text) => {
                eprintln!("fakecuda: {text}");
                return abi::UNKNOWN;
            }
        },
    };
    let answer = driver.begin(name).and_then(|skipped| if skipped { Ok(()) } else { call(driver) });
    driver.host.tick(HOST);
    match answer {
        Ok(()) => driver.told.take().unwrap_or(abi::SUCCESS),
        Err(Refusal::Code(code)) => code,
        Err(Refusal::Found(code, text)) => {
            let text = format!("{name}: {text}");
            if driver.settings.fatal {
                eprintln!("fakecuda: {text}");
                report::end();
            }
            driver.findings.push(text);
            code
        }
    }
}

impl Driver {
    pub fn new(settings: Settings) -> Driver {
        let mut memory = Memory::new();
        memory.watch();
        let mut host = Clock::default();
        host.tick(HOST);
        Driver {
            replays: settings.schedule,
            settings,
            started: false,
            lost: false,
            memory,
            blocks: BTreeMap::new(),
            pinned: BTreeMap::new(),
            flights: Vec::new(),
            contexts: Table::new("context", 0x1_0000_0000),
            streams: Table::new("stream", 0x2_0000_0000),
            events: Table::new("event", 0x3_0000_0000),
            modules: Table::new("module", 0x4_0000_0000),
            functions: Table::new("function", 0x5_0000_0000),
            graphs: Table::new("graph", 0x6_0000_0000),
            execs: Table::new("executable graph", 0x7_0000_0000),
            blas: Table::new("object of cuBLASLt", 0x8_0000_0000),
            host,
            actors: 0,
            now: 0,
            used: 0,
            peak: 0,
            kernels: 0,
            beside: 0,
            calls: BTreeMap::new(),
            findings: Vec::new(),
            told: None,
        }
    }

    /// What comes before a call; whether it is to be skipped.
    fn begin(&mut self, name: &'static str) -> Answer<bool> {
        let count = self.calls.entry(name).or_default();
        *count += 1;
        if self.settings.skips.iter().any(|(call, nth)| call == name && nth.is_none_or(|n| n == *count)) {
            return Ok(true);
        }
        let told = self.settings.failures.iter().find(|f| f.call == name && f.nth == *count);
        self.told = told.map(|f| f.code);
        if let Some(code) = self.told.filter(|_| !ENDS.contains(&name)) {
            return Err(Refusal::Code(code));
        }
        if !self.started && !STARTS.contains(&name) {
            return found(abi::NOT_INITIALIZED, "called before cuInit");
        }
        if let Some((_, since)) = LATER.iter().find(|row| row.0 == name && row.1 > self.settings.version) {
            return found(abi::NOT_FOUND, format!("it came with CUDA {}.{}", since / 1000, since % 1000 / 10));
        }
        if WITHOUT_CARD.contains(&name) {
            return Ok(false);
        }
        if let Some((_, code)) = self.settings.lose.filter(|_| self.lost) {
            return Err(Refusal::Code(code));
        }
        let here = std::thread::current().id();
        let forbids = |c: &Capture| c.mode < abi::THREAD_LOCAL || c.mode == abi::THREAD_LOCAL && c.thread == here;
        if UNSAFE_IN_CAPTURE.contains(&name) {
            for (handle, stream) in self.streams.iter_mut() {
                if let Some(capture) = stream.capture.as_mut().filter(|c| forbids(c)) {
                    capture.broken = true;
                    let text = format!("not allowed while stream {handle:#x} is captured");
                    return found(abi::CAPTURE_UNSUPPORTED, text);
                }
            }
        }
        Ok(false)
    }

    /// The calling thread's context.
    pub fn current(&self) -> Answer<usize> {
        match CURRENT.get() {
            0 => found(abi::INVALID_CONTEXT, "no context is current on this thread"),
            handle => match self.contexts.get(handle) {
                Ok(_) => Ok(handle),
                Err(text) => found(abi::INVALID_CONTEXT, format!("the thread's current {text}")),
            },
        }
    }

    pub fn set_current(&self, handle: usize) -> Answer {
        if handle != 0 {
            self.contexts.get(handle).map_err(|text| Refusal::Found(abi::INVALID_CONTEXT, text))?;
        }
        CURRENT.set(handle);
        Ok(())
    }

    /// That an object is of the calling thread's context.
    pub fn own(&self, what: &str, context: usize) -> Answer {
        match self.current()? == context {
            true => Ok(()),
            false => {
                found(abi::INVALID_CONTEXT, format!("{what} is not of the context that is current on this thread"))
            }
        }
    }

    /// A stream of the current context. The default stream is none.
    pub fn stream(&mut self, handle: usize) -> Answer<&mut Stream> {
        if handle == 0 {
            return found(abi::INVALID_HANDLE, "the default stream is used: it waits for all blocking streams");
        }
        let context = self.streams.get(handle).handle()?.context;
        self.own(&format!("stream {handle:#x}"), context)?;
        self.streams.get_mut(handle).handle()
    }

    pub fn event(&mut self, handle: usize) -> Answer<&mut Event> {
        let context = self.events.get(handle).handle()?.context;
        self.own(&format!("event {handle:#x}"), context)?;
        self.events.get_mut(handle).handle()
    }

    /// One more piece of work on a stream: what it comes after, and its mark.
    pub fn step(&mut self, stream: usize, what: &str) -> Answer<(Clock, Mark)> {
        let host = self.host.clone();
        let stream = self.streams.get_mut(stream).handle()?;
        stream.clock.join(&host);
        let time = stream.clock.tick(stream.actor);
        Ok((stream.clock.clone(), Mark { actor: stream.actor, time, what: what.into() }))
    }

    /// The host now comes after all that this clock does; pages whose copies are over are the host's again.
    pub fn host_after(&mut self, clock: &Clock) {
        self.host.join(clock);
        let Driver { flights, host, .. } = self;
        pages::land(flights, host);
    }

    /// The host waits for every stream.
    pub fn host_after_all(&mut self) {
        let clocks: Vec<Clock> = self.streams.iter().map(|(_, s)| s.clock.clone()).collect();
        clocks.iter().for_each(|clock| self.host_after(clock));
    }

    /// What of a context lives, in words.
    pub fn alive(&self, context: usize) -> Vec<String> {
        let mut left = Vec::new();
        let mut count = |kind: &str, n: usize| {
            if n > 0 {
                left.push(format!("{n} {kind}{}", if n == 1 { "" } else { "s" }));
            }
        };
        let of = |blocks: &BTreeMap<u64, Block>| blocks.values().filter(|b| b.context == context).count();
        count("allocation", of(&self.blocks));
        count("pinned allocation", of(&self.pinned));
        count(self.streams.kind(), self.streams.iter().filter(|(_, s)| s.context == context).count());
        count(self.events.kind(), self.events.iter().filter(|(_, e)| e.context == context).count());
        count(self.modules.kind(), self.modules.iter().filter(|(_, m)| m.context == context).count());
        count(self.graphs.kind(), self.graphs.iter().filter(|(_, g)| g.context == context).count());
        count(self.blas.kind(), self.blas.iter().count());
        count(self.execs.kind(), self.execs.iter().filter(|(_, g)| g.context == context).count());
        left
    }
}
