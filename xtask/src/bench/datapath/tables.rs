//! The flow tables of the benchmark: the number of rows for a flow, and the memory of a table.

use anyhow::{Context, Result, bail};
use aya::maps::Map;
use bg_tests::twin::{Kernel, Sizes};

/// Rows for each flow: half of them are in use.
const ROWS_PER_FLOW: u32 = 2;

/// Heads of each index, as in an instance by default.
const HEADS: u32 = 16_384;

/// Loads the object under test, with tables that this many flows of a family fill to half.
pub(super) fn load(flows: u32) -> Result<Kernel> {
    Kernel::load(Sizes { rows: ROWS_PER_FLOW * flows, heads: HEADS })
}

/// Bytes of a family's flow table.
pub(super) fn bytes(kernel: &mut Kernel, is_ipv4: bool) -> Result<u64> {
    let name = if is_ipv4 { "flows4" } else { "flows6" };
    let Map::Array(map) = kernel.object().map(name).with_context(|| format!("no map {name}"))? else {
        bail!("{name} is no array");
    };
    let info = map.info()?;
    Ok(u64::from(info.value_size()) * u64::from(info.max_entries()))
}
