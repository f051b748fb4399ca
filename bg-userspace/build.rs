//! Chooses the BPF objects that the library embeds: the committed ones, or fresh ones that `BGCTL_BPF_OBJECT` and
//! `BGCTL_EXPLAIN_OBJECT` name. So building needs stable Rust alone.

use std::{env, fs, path::PathBuf};

fn main() {
    embed("bg.bpf.o", "BGCTL_BPF_OBJECT", "attach");
    embed("explain.bpf.o", "BGCTL_EXPLAIN_OBJECT", "explain");
    embed("decap.bpf.o", "BGCTL_DECAP_OBJECT", "unpack");
    embed("check.bpf.o", "BGCTL_CHECK_OBJECT", "check backends by their virtual addresses");
}

fn embed(name: &str, variable: &str, purpose: &str) {
    println!("cargo::rerun-if-env-changed={variable}");
    let committed = || PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("bpf").join(name);
    let object = env::var_os(variable).map_or_else(committed, PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join(name);
    // Without an object, what needs none can still be built and tested; loading then says what is missing.
    let bytes = fs::read(&object).unwrap_or_else(|error| {
        println!(
            "cargo::warning={}: {error}; this build cannot {purpose}. `cargo xtask build-ebpf` makes it",
            object.display()
        );
        Vec::new()
    });
    fs::write(&embedded, bytes).expect("the output directory is writable");
}
