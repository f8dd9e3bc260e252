//! A session's state and adapter as bytes.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use trimtab::backend::cpu::Cpu;
use trimtab::base::Base;
use trimtab::data::pack::{MicroBatch, pack};
use trimtab::data::{Dataset, Example};
use trimtab::peft::{AdapterConfig, Targets, lora::Lora};
use trimtab::session::{Options, Planned, Session};

use super::{forms, put};

/// A session that has taken a step, what it takes, and its state.
type Ready = (Session, Vec<MicroBatch>, Vec<u8>);

fn ready(folder: &Path) -> trimtab::Result<Ready> {
    let config = br#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":4,"intermediate_size":4,
        "num_attention_heads":1,"num_hidden_layers":1,"vocab_size":8}"#;
    put(&folder.join("config.json"), config);
    let base = Arc::new(Base::random(folder)?);
    let method = Lora { config: AdapterConfig::lora(1, 2.0, Targets::List(vec!["q_proj".into()])) };
    let options = Options { max_seq_len: 4, micro_tokens: 4, ..Options::default() };
    let mut session =
        Planned::new(&base, Box::new(method), options, Box::new(Cpu::new()))?.start(None, &mut |_, _| Ok(()))?;
    let mut data = Dataset::default();
    data.push(&Example::whole(vec![1, 2, 3]))?;
    let micro = pack(&data, &[0], session.layout()?, true)?;
    session.step(&micro, 1e-3)?;
    let state = session.state()?;
    Ok((session, micro, state))
}

/// The whole input is the state's bytes, or in [`forms::safetensors`].
pub fn run(input: &[u8], folder: &Path) {
    static READY: OnceLock<Mutex<Ready>> = OnceLock::new();
    let ready = READY.get_or_init(|| Mutex::new(ready(folder).expect("a session of a small model")));
    let mut ready = ready.lock().expect("a session that no panic left");
    let (session, micro, state) = &mut *ready;
    let bytes = forms::safetensors(input);
    if session.set_state(&bytes).is_ok() {
        // It is taken whole, and training goes on from it.
        let back = session.state().expect("the state of a session");
        session.set_state(&back).expect("a state that was given out");
        let _ = session.step(micro, 1e-3);
        session.set_state(state).expect("the first state");
    }
    let _ = session.set_adapter(&bytes);
}
