//! Counting the instructions of each program of the object, as a loader passes them to the kernel.

use super::verdict::Numbers;
use anyhow::{Context, Result};
use aya_obj::Object;
use std::{collections::HashSet, fs, path::Path};

/// Counts each program with the functions that it calls.
pub(crate) fn instructions(path: &Path) -> Result<Numbers> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut object = Object::parse(&bytes).with_context(|| format!("{} is no BPF object", path.display()))?;
    // Puts what a program calls behind it, as loading does.
    let sections: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).context("a program calls what is not there")?;
    let counted = object.programs.iter().map(|(name, program)| {
        let function = object.functions.get(&program.function_key()).with_context(|| format!("no code of {name}"))?;
        Ok((name.clone(), function.instructions.len() as f64))
    });
    counted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_object_has_programs_with_what_they_call() {
        let counted = instructions(&crate::build_ebpf::committed()).unwrap();
        for program in ["ingress", "tc_ingress", "tc_egress"] {
            assert!(counted[program] > 500.0, "{program} with its callees: {counted:?}");
        }
    }
}
