//! What the benchmark knows of the flow tables: how many rows a flow takes, and what a table takes of memory.

use anyhow::{Context, Result};
use aya::maps::Map;
use bg_tests::twin::Kernel;
use std::path::Path;

/// Rows that a flow takes: one for each direction.
const ROWS_A_FLOW: u32 = 2;

/// Loads the object under test, or another one, with tables of which so many flows of a family are half.
pub(super) fn load(object: Option<&Path>, flows: u32) -> Result<Kernel> {
    let rows = 2 * ROWS_A_FLOW * flows;
    match object {
        Some(path) => Kernel::load_object(path, rows),
        None => Kernel::load(rows),
    }
}

/// Octets of a family's flow table, by what its rows take. `None`: a table of the kernel's, which takes more than that.
pub(super) fn octets(kernel: &mut Kernel, is_ipv4: bool) -> Result<Option<u64>> {
    let name = if is_ipv4 { "flows4" } else { "flows6" };
    let Map::Array(map) = kernel.object().map(name).with_context(|| format!("no map {name}"))? else {
        return Ok(None);
    };
    let info = map.info()?;
    Ok(Some(u64::from(info.value_size()) * u64::from(info.max_entries())))
}
