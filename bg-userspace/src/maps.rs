//! The pinned maps of an instance, typed. Rows of arrays are read and written in mapped memory. Rows of hash maps are read and written
//! by system calls, a whole row at once, so that readers in the kernel see one change.

use std::{collections::HashMap as StdHashMap, os::fd::AsFd as _};

use aya::{
    maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, lpm_trie::Key},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use aya_obj::programs::XdpAttachType;
use bg_common::{
    Backend, BackendInfo, Clock, DeploymentRow, Event, HELD_LOG_BYTES, Hold, LiveWord, ServiceInfo, ServiceKey,
    ServiceRow, SwitchTerms, TesterKey, Timing, Traffic, Trips, Tunnel, Vip,
};

use crate::{
    Error, Paths,
    flow_table::{Bucket4, Bucket6},
    sys::{Mapped, lookup_batch},
};

/// The maps that a switch needs. They are small, so opening them costs little.
#[derive(Debug)]
pub(crate) struct Words {
    pub(crate) live: Mapped<LiveWord>,
    pub(crate) terms: Mapped<[SwitchTerms; 2]>,
    pub(crate) timing: Mapped<[Timing; 2]>,
    pub(crate) trips: Mapped<[Trips; 2]>,
    pub(crate) deployments: Mapped<DeploymentRow>,
}

impl Words {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        Ok(Self {
            live: mapped(paths, "live")?,
            terms: mapped(paths, "terms")?,
            timing: mapped(paths, "timing")?,
            trips: mapped(paths, "trips")?,
            deployments: mapped(paths, "deployments")?,
        })
    }
}

/// The services, without their backends.
pub(crate) struct Services {
    pub(crate) rows: HashMap<MapData, ServiceKey, ServiceRow>,
    pub(crate) vips: Mapped<Vip>,
    pub(crate) info: Mapped<ServiceInfo>,
    fd: MapData,
}

impl Services {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        Ok(Self {
            rows: typed(paths, "services")?,
            vips: mapped(paths, "vips")?,
            info: mapped(paths, "service_info")?,
            fd: pinned(paths, "services")?,
        })
    }

    /// All rows of the `services` map.
    pub(crate) fn published(&self) -> Result<StdHashMap<ServiceKey, ServiceRow>, Error> {
        let mut rows = StdHashMap::new();
        lookup_batch(self.fd.fd().as_fd(), |key, row| _ = rows.insert(key, row))
            .map_err(Error::map("read", "services"))?;
        Ok(rows)
    }
}

/// The services, their backends, and the testers.
pub(crate) struct Tables {
    pub(crate) services: Services,
    pub(crate) backends: Mapped<Backend>,
    pub(crate) backend_info: Mapped<BackendInfo>,
    pub(crate) tunnels: Mapped<Tunnel>,
    pub(crate) testers: LpmTrie<MapData, TesterKey, u32>,
}

impl Tables {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        Ok(Self {
            services: Services::open(paths)?,
            backends: backends(paths)?,
            backend_info: mapped(paths, "backend_info")?,
            tunnels: mapped(paths, "tunnels")?,
            testers: typed(paths, "testers")?,
        })
    }

    /// All tester prefixes: the deployment's index, key and prefix length.
    pub(crate) fn tester_keys(&self) -> Result<Vec<Key<TesterKey>>, Error> {
        self.testers.keys().collect::<Result<_, _>>().map_err(Error::map("read", "testers"))
    }
}

/// Opens the virtual addresses.
#[cfg(feature = "serve")]
pub(crate) fn vips(paths: &Paths) -> Result<Mapped<Vip>, Error> {
    mapped(paths, "vips")
}

/// Opens the backends.
pub(crate) fn backends(paths: &Paths) -> Result<Mapped<Backend>, Error> {
    mapped(paths, "backends")
}

/// Heads of the indexes.
pub(crate) struct Heads {
    pub(crate) vips: Mapped<[u32; 2]>,
    pub(crate) backends: Mapped<[u32; 2]>,
}

impl Heads {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        Ok(Self { vips: mapped(paths, "vip_index")?, backends: mapped(paths, "backend_index")? })
    }
}

/// Opens the queues of frozen deployments.
pub(crate) fn holds(paths: &Paths) -> Result<Mapped<Hold>, Error> {
    mapped(paths, "holds")
}

/// Opens the log of held packets.
pub(crate) fn held(paths: &Paths) -> Result<Mapped<[u64; HELD_LOG_BYTES / 8]>, Error> {
    mapped(paths, "held")
}

/// Opens the Maglev tables. They are separate, since mapping so many pages takes time.
pub(crate) fn maglev(paths: &Paths) -> Result<Mapped<[u32; 2]>, Error> {
    mapped(paths, "maglev")
}

/// Opens `flows4`.
pub(crate) fn flows4(paths: &Paths) -> Result<Mapped<Bucket4>, Error> {
    mapped(paths, "flows4")
}

/// Opens `flows6`.
pub(crate) fn flows6(paths: &Paths) -> Result<Mapped<Bucket6>, Error> {
    mapped(paths, "flows6")
}

/// The traffic counters, which exist for each CPU.
pub(crate) struct TrafficCounters(PerCpuArray<MapData, Traffic>);

impl TrafficCounters {
    pub(crate) fn open(paths: &Paths) -> Result<Self, Error> {
        Ok(Self(typed(paths, "traffic")?))
    }

    /// A row, summed over all CPUs.
    pub(crate) fn sum(&self, row: u32) -> Result<Traffic, Error> {
        let per_cpu = self.0.get(&row, 0).map_err(Error::map("read", "traffic"))?;
        Ok(per_cpu.iter().fold(Traffic::default(), |sum, cpu| Traffic {
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
            flows_opened: sum.flows_opened + cpu.flows_opened,
            mirrored: sum.mirrored + cpu.mirrored,
        }))
    }

    /// Sets a row to zero.
    pub(crate) fn clear(&mut self, row: u32) -> Result<(), Error> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| Error::map("write", "traffic")(error))?;
        let zeros = aya::maps::PerCpuValues::try_from(vec![Traffic::default(); cpus]);
        let zeros = zeros.map_err(Error::map("write", "traffic"))?;
        self.0.set(row, zeros, 0).map_err(Error::map("write", "traffic"))
    }
}

/// All event counters, summed over all CPUs, in the order of [`Event::ALL`].
pub(crate) fn events(paths: &Paths) -> Result<Vec<(Event, u64)>, Error> {
    let map: PerCpuArray<_, u64> = typed(paths, "events")?;
    let count = |event: Event| {
        let per_cpu = map.get(&(event as u32), 0).map_err(Error::map("read", "events"))?;
        Ok((event, per_cpu.iter().sum()))
    };
    Event::ALL.into_iter().map(count).collect()
}

/// Has the kernel read the data path's clocks at one moment.
pub(crate) fn clock(paths: &Paths) -> Result<Clock, Error> {
    const PROGRAM: &str = "read_clock";
    // The length of an Ethernet header, which is the shortest packet that the kernel accepts.
    let packet = [0; 14];
    let program = Xdp::from_pin(paths.program(PROGRAM), XdpAttachType::Interface);
    let program = program.map_err(Error::program("open", PROGRAM))?;
    let clock: Array<MapData, Clock> = typed(paths, "clock")?;
    program
        .test_run(TestRunOptions { data_in: Some(&packet), ..Default::default() })
        .map_err(Error::program("run", PROGRAM))?;
    clock.get(&0, 0).map_err(Error::map("read", "clock"))
}

/// Ignores the error that an entry to be removed does not exist.
pub(crate) fn unless_missing(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

fn pinned(paths: &Paths, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(paths.map(name)).map_err(Error::map("open", name))
}

pub(crate) fn typed<T: TryFrom<Map, Error = MapError>>(paths: &Paths, name: &'static str) -> Result<T, Error> {
    Map::from_map_data(pinned(paths, name)?).and_then(T::try_from).map_err(Error::map("open", name))
}

fn mapped<T: bytemuck::Pod>(paths: &Paths, name: &'static str) -> Result<Mapped<T>, Error> {
    let map = pinned(paths, name)?;
    let rows = map.info().map_err(Error::map("open", name))?.max_entries();
    Mapped::new(&map, rows).map_err(Error::map("map into memory", name))
}
