//! The sizes of programs and flows.

use super::{
    super::report::{Cell, Table},
    Setup,
    case::Case,
    columns, tables,
};
use anyhow::{Context, Result};
use bg_common::Protocol;

/// The number of flows for which the tables are made.
const FLOWS: u32 = 1 << 18;

pub(super) fn sizes(_setup: &Setup<'_>) -> Result<Table> {
    let mut kernel = tables::load(FLOWS)?;
    let mut rows = Vec::new();
    for name in ["ingress", "tc_ingress", "tc_egress"] {
        let info = kernel.object().program(name).with_context(|| format!("no program {name}"))?.info()?;
        let count = |count: Option<u32>| count.map_or(Cell::Empty, |count| f64::from(count).into());
        rows.push(vec![
            name.into(),
            count(info.verified_instruction_count()),
            count(info.size_translated()),
            f64::from(info.size_jitted()).into(),
        ]);
    }
    Ok(Table {
        title: "Programs".into(),
        about: "From the kernel: the number of instructions that the verifier has processed, and the size of the program before \
                and after the JIT."
            .into(),
        columns: columns(&["program", "verified instructions", "BPF, bytes", "JIT, bytes"]),
        rows,
    })
}

pub(super) fn memory(_setup: &Setup<'_>) -> Result<Table> {
    let mut kernel = tables::load(FLOWS)?;
    let mut rows = Vec::new();
    for case in [Case::ipv4(Protocol::Tcp)?, Case::ipv6(Protocol::Tcp)?] {
        let bytes = tables::bytes(&mut kernel, case.is_ipv4())?;
        let family = if case.is_ipv4() { "IPv4" } else { "IPv6" };
        rows.push(vec![
            family.into(),
            (bytes as f64 / f64::from(1 << 20)).into(),
            (bytes as f64 / f64::from(FLOWS)).into(),
        ]);
    }
    Ok(Table {
        title: "Memory of a flow".into(),
        about: format!("The tables are made for {FLOWS} flows, which fill half of them."),
        columns: columns(&["family", "table, MiB", "per flow, bytes"]),
        rows,
    })
}
