#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ferroxen_entrances::boot_disk(bytes));
