#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| trimtab_fuzz::run("adapter", input));
