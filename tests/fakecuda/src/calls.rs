//! Cards, contexts, events and modules.

use std::sync::Arc;

use ptxsim::Module;

use crate::abi;
use crate::driver::{Answer, Context, Driver, Event, Function, Handle, Loaded, Point, Refusal, found};

impl Driver {
    pub fn card(&self, device: i32) -> Answer {
        match (0..self.settings.cards).contains(&device) {
            true => Ok(()),
            false => found(abi::INVALID_DEVICE, format!("there is no card {device}")),
        }
    }

    /// A card's attribute. Others than those that are asked for are not made up.
    pub fn attribute(&self, which: i32, device: i32) -> Answer<i32> {
        self.card(device)?;
        match which {
            abi::MAJOR => Ok(self.settings.arch / 10),
            abi::MINOR => Ok(self.settings.arch % 10),
            abi::MULTIPROCESSORS => Ok(16),
            abi::SHARED_OPTIN => Ok(self.shared_most() as i32),
            _ => found(abi::INVALID_VALUE, format!("attribute {which} of a card is not modelled")),
        }
    }

    /// Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, "Compute Capabilities").
    fn shared_most(&self) -> u32 {
        match self.settings.arch {
            ..80 => 64 << 10,
            86 | 89 => 99 << 10,
            80..90 => 163 << 10,
            _ => 227 << 10,
        }
    }

    pub fn retain(&mut self, device: i32) -> Answer<usize> {
        self.card(device)?;
        if let Some((handle, context)) = self.contexts.iter_mut().find(|(_, c)| c.card == device) {
            context.users += 1;
            return Ok(handle);
        }
        Ok(self.contexts.add(Context { card: device, users: 1 }))
    }

    /// At its last release a context takes all that is in it along, which a program should have ended before.
    pub fn release(&mut self, device: i32) -> Answer {
        self.card(device)?;
        let Some((handle, context)) = self.contexts.iter_mut().find(|(_, c)| c.card == device) else {
            return found(abi::INVALID_CONTEXT, format!("card {device} has no context that is open"));
        };
        context.users -= 1;
        if context.users > 0 {
            return Ok(());
        }
        let left = self.alive(handle);
        self.contexts.take(handle).handle()?;
        self.streams.clear(|s| s.context == handle);
        self.events.clear(|e| e.context == handle);
        self.modules.clear(|m| m.context == handle);
        self.graphs.clear(|g| g.context == handle);
        self.execs.clear(|g| g.context == handle);
        self.blocks.retain(|_, b| b.context != handle);
        self.pinned.retain(|_, b| b.context != handle);
        self.used = self.blocks.values().map(|b| b.bytes).sum();
        match left.is_empty() {
            true => Ok(()),
            false => found(abi::SUCCESS, format!("the context is released with {} in it", left.join(", "))),
        }
    }

    pub fn end_stream(&mut self, handle: usize) -> Answer {
        if self.stream(handle)?.capture.is_some() {
            return found(abi::CAPTURE_UNSUPPORTED, format!("stream {handle:#x} is destroyed while it is captured"));
        }
        self.streams.take(handle).handle().map(|_| ())
    }

    pub fn wait_stream(&mut self, handle: usize) -> Answer {
        self.outside(handle)?;
        let clock = self.stream(handle)?.clock.clone();
        self.host_after(&clock);
        Ok(())
    }

    pub fn new_event(&mut self, flags: u32) -> Answer<usize> {
        let context = self.current()?;
        Ok(self.events.add(Event { context, timed: flags & abi::DISABLE_TIMING == 0, point: None }))
    }

    pub fn end_event(&mut self, handle: usize) -> Answer {
        self.event(handle)?;
        self.events.take(handle).handle().map(|_| ())
    }

    pub fn record(&mut self, event: usize, stream: usize) -> Answer {
        let (host, time) = (self.host.clone(), self.now);
        let stream = self.stream(stream)?;
        let captured = stream.capture.is_some();
        if !captured {
            stream.clock.join(&host);
        }
        let clock = stream.clock.clone();
        self.event(event)?.point = Some(Point { clock, time, captured });
        Ok(())
    }

    /// The stream goes on when the event has passed. One that was never recorded has.
    pub fn wait_event(&mut self, stream: usize, event: usize) -> Answer {
        let point = self.event(event)?.point.as_ref().map(|p| (p.clock.clone(), p.captured));
        let stream = self.stream(stream)?;
        match (point, &mut stream.capture) {
            (None, _) => Ok(()),
            (Some((_, true)), Some(_)) => Ok(()),
            (Some((clock, false)), None) => {
                stream.clock.join(&clock);
                Ok(())
            }
            (Some((_, true)), None) => {
                found(abi::CAPTURED_EVENT, "a stream waits for an event of another's capture, which is not modelled")
            }
            (Some((_, false)), Some(capture)) => {
                capture.broken = true;
                found(abi::CAPTURE_ISOLATION, "a captured stream waits for work that is not captured")
            }
        }
    }

    /// The host goes on when the event has passed.
    pub fn wait_for(&mut self, event: usize) -> Answer {
        let Some(point) = &self.event(event)?.point else { return Ok(()) };
        if point.captured {
            return found(abi::CAPTURED_EVENT, format!("event {event:#x} was recorded in a capture"));
        }
        let clock = point.clock.clone();
        self.host_after(&clock);
        Ok(())
    }

    /// Milliseconds of the card's clock between two events that the host has waited for.
    pub fn elapsed(&mut self, start: usize, end: usize) -> Answer<f32> {
        let mut times = [0; 2];
        for (time, handle) in times.iter_mut().zip([start, end]) {
            let host = self.host.clone();
            let event = self.event(handle)?;
            let Some(point) = event.point.as_ref().filter(|p| event.timed && !p.captured) else {
                let text = format!("event {handle:#x} has no time: it was not recorded, or made without");
                return found(abi::INVALID_HANDLE, text);
            };
            let mut after = host.clone();
            after.join(&point.clock);
            if after != host {
                return found(abi::NOT_READY, format!("the host has not waited for event {handle:#x}"));
            }
            *time = point.time;
        }
        Ok((times[1] as f64 - times[0] as f64) as f32 / 1e6)
    }

    /// Loads a module from text.
    pub fn load(&mut self, image: &[u8]) -> Answer<usize> {
        let context = self.current()?;
        if image.starts_with(b"\x7fELF") {
            let text =
                "a module of machine code: this card takes PTX; FAKECUDA_ARCH may name one that no compiler knows";
            return found(abi::INVALID_IMAGE, text);
        }
        let Ok(text) = std::str::from_utf8(image) else { return found(abi::INVALID_PTX, "a module that is no text") };
        let target = text.lines().find_map(|l| l.trim().strip_prefix(".target sm_"));
        let digits = |t: &str| t.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<i32>().ok();
        match target.and_then(digits) {
            Some(arch) if arch <= self.settings.arch => {}
            Some(arch) => {
                return found(abi::NO_BINARY, format!("PTX for sm_{arch} on a card of sm_{}", self.settings.arch));
            }
            None => return found(abi::INVALID_PTX, "a module without a target"),
        }
        let code = Module::parse(text).map_err(|e| Refusal::Found(abi::INVALID_PTX, e))?;
        Ok(self.modules.add(Loaded { context, code: Arc::new(code), ran: Default::default() }))
    }

    pub fn unload(&mut self, handle: usize) -> Answer {
        let loaded = self.modules.get(handle).handle()?;
        let (context, mut after) = (loaded.context, self.host.clone());
        after.join(&loaded.ran);
        self.own("the module", context)?;
        if after != self.host {
            return found(abi::UNKNOWN, "the host has not waited for kernels of this module");
        }
        self.functions.clear(|f| f.module == handle);
        self.modules.take(handle).handle().map(|_| ())
    }

    pub fn function(&mut self, module: usize, entry: &str) -> Answer<usize> {
        let loaded = self.modules.get(module).handle()?;
        let context = loaded.context;
        if loaded.code.parameters(entry).is_none() {
            return Err(Refusal::Code(abi::NOT_FOUND));
        }
        self.own("the module", context)?;
        let known =
            self.functions.iter().find(|(_, f)| f.module == module && f.entry == entry).map(|(handle, _)| handle);
        Ok(known.unwrap_or_else(|| self.functions.add(Function { module, entry: entry.into(), shared: 0 })))
    }

    pub fn set_attribute(&mut self, function: usize, attribute: i32, value: i32) -> Answer {
        let most = self.shared_most();
        let known = self.functions.get(function).handle()?;
        let fixed = self.modules.get(known.module).handle()?.code.static_shared(&known.entry).unwrap_or_default();
        if attribute != abi::MAX_DYNAMIC_SHARED {
            return found(abi::INVALID_VALUE, format!("attribute {attribute} of a function is not modelled"));
        }
        let value = u32::try_from(value).unwrap_or(u32::MAX);
        if u64::from(value) + fixed as u64 > u64::from(most) {
            return found(abi::INVALID_VALUE, format!("{value} bytes of shared memory and {fixed}, of {most}"));
        }
        self.functions.get_mut(function).handle()?.shared = value;
        Ok(())
    }
}
