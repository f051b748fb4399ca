//! Whether a loaded program belongs to this instance, or to another instance of bgctl.

use aya::{
    maps::MapInfo,
    programs::{ProgramInfo, loaded_programs},
};

use crate::{
    Paths,
    loader::{INGRESS, TC_EGRESS, TC_INGRESS},
    map_specs::MAPS,
};

/// Whether a program uses this instance's maps.
pub(super) fn is_of_instance(paths: &Paths, program_id: u32) -> bool {
    let mut programs = loaded_programs().map_while(Result::ok);
    programs.find(|program| program.id() == program_id).is_some_and(|program| uses_maps_of(paths, &program))
}

pub(super) fn uses_maps_of(paths: &Paths, program: &ProgramInfo) -> bool {
    let Ok(Some(maps)) = program.map_ids() else { return false };
    // Every program uses the map of event counters.
    MapInfo::from_pin(paths.map("events")).is_ok_and(|events| maps.contains(&events.id()))
}

/// Whether it is one of a controller's programs for health checks, which take nothing but replies to its own checks.
pub(super) fn is_of_checks(program: &ProgramInfo) -> bool {
    if !program.name_as_str().is_some_and(|name| ["check_in", "check_out"].contains(&name)) {
        return false;
    }
    let maps = program.map_ids().ok().flatten().unwrap_or_default();
    maps.into_iter().any(|id| MapInfo::from_id(id).is_ok_and(|info| info.name_as_str() == Some("check_device")))
}

/// Whether an instance of this or another version has loaded the program, judged by its name and the names of its maps.
pub(super) fn is_bgctl(program: &ProgramInfo) -> bool {
    const ENOUGH: usize = 3;
    if !program.name_as_str().is_some_and(|name| [INGRESS, TC_INGRESS, TC_EGRESS].contains(&name)) {
        return false;
    }
    let maps = program.map_ids().ok().flatten().unwrap_or_default();
    let known = maps.into_iter().filter(|id| {
        let info = MapInfo::from_id(*id).ok();
        info.is_some_and(|info| MAPS.iter().any(|map| info.name_as_str() == Some(map.name)))
    });
    known.take(ENOUGH).count() == ENOUGH
}
