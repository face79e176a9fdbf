#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| throughline_decoders::decode("guest_agent", bytes));
