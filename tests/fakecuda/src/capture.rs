//! Captures and the graphs they become.

use crate::abi;
use crate::driver::{Answer, Capture, Driver, Graph, Handle, Refusal, found};

impl Driver {
    pub fn begin_capture(&mut self, stream: usize, mode: u32) -> Answer {
        if mode > abi::RELAXED {
            return found(abi::INVALID_VALUE, format!("{mode} is no mode of captures"));
        }
        let stream = self.stream(stream)?;
        if stream.capture.is_some() {
            return found(abi::CAPTURE_UNSUPPORTED, "the stream is captured already");
        }
        let thread = std::thread::current().id();
        stream.capture = Some(Capture { mode, thread, ops: Vec::new(), broken: false });
        Ok(())
    }

    pub fn end_capture(&mut self, handle: usize) -> Answer<usize> {
        let stream = self.stream(handle)?;
        let context = stream.context;
        let Some(capture) = stream.capture.take() else {
            return found(abi::INVALID_VALUE, format!("stream {handle:#x} is not captured"));
        };
        let elsewhere = capture.thread != std::thread::current().id();
        if elsewhere && capture.mode != abi::RELAXED {
            stream.capture = Some(capture);
            return found(abi::CAPTURE_WRONG_THREAD, "another thread began this capture");
        }
        match capture.broken {
            true => Err(Refusal::Code(abi::CAPTURE_INVALIDATED)),
            false if self.told.is_some() => Ok(0),
            false => Ok(self.graphs.add(Graph { context, ops: capture.ops })),
        }
    }

    pub fn instantiate(&mut self, graph: usize) -> Answer<usize> {
        self.current()?;
        let Graph { context, ops } = self.graphs.get(graph).handle()?;
        let exec = Graph { context: *context, ops: ops.clone() };
        Ok(self.execs.add(exec))
    }

    /// Runs a graph on a stream, under the next schedule.
    pub fn replay(&mut self, exec: usize, stream: usize) -> Answer {
        self.outside(stream)?;
        let graph = self.execs.get(exec).handle()?;
        let (context, ops) = (graph.context, graph.ops.clone());
        self.own(&format!("executable graph {exec:#x}"), context)?;
        let schedule = self.schedule();
        ops.iter().try_for_each(|op| self.perform(stream, op, schedule))
    }

    /// That the stream is not captured: for what no capture here can hold.
    pub fn outside(&mut self, stream: usize) -> Answer {
        match &mut self.stream(stream)?.capture {
            None => Ok(()),
            Some(capture) => {
                capture.broken = true;
                found(abi::CAPTURE_UNSUPPORTED, format!("stream {stream:#x} is captured"))
            }
        }
    }
}
