//! Chooses the BPF object that the library embeds: the committed one, or a fresh one that
//! `BGCTL_BPF_OBJECT` names. So building needs stable Rust alone.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=BGCTL_BPF_OBJECT");
    let committed = || PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("bpf/bg.bpf.o");
    let object = env::var_os("BGCTL_BPF_OBJECT").map_or_else(committed, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("bg.bpf.o");
    // Without an object, what needs none can still be built and tested; loading then says what is missing.
    let bytes = fs::read(&object).unwrap_or_else(|error| {
        println!(
            "cargo::warning={}: {error}; this build cannot attach. `cargo xtask build-ebpf` makes it",
            object.display()
        );
        Vec::new()
    });
    fs::write(&embedded, bytes).expect("the output directory is writable");
}
