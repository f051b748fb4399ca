//! What a switch, a rollback or a split would do, without doing it.
//!
//! The preconditions and the next word are those of the change itself, and whether a flow would end is decided by the function that the data
//! path asks. So a dry run and the change right after it agree, unless something has changed in between.

mod flows;
mod target;
mod window;

use std::time::Duration;

use bg_common::{Colour, FULL_SHARE};
use serde::Serialize;

use self::flows::{Affected, Census};
pub use self::{
    flows::{TableUse, TablesUse},
    target::TargetBackend,
    window::{InFlight, WindowOutlook},
};
use crate::{
    Condition, Error, ErrorClass, FreezeWindow, Instance, SplitRequest, SwitchRequest,
    config::{DivideBy, Gate, OnSwitch},
    fates::Fates,
    history::Moment,
    json,
    maps::Tables,
    pins,
    running::Running,
    show::drain_timeout_of,
    switch::{Kind, Outlook},
};

/// Whether a change would be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Would {
    /// Yes, and one colour would get all new flows.
    Switch,
    /// Yes, and both colours would get new flows.
    Split,
    /// No: what is asked for is in force already, so the command would succeed and change nothing.
    Nothing,
    /// No: it would be refused.
    Refuse,
}

/// What a change would do, in the form that `bgctl switch --dry-run --json` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DryRun {
    /// Name of the deployment.
    pub deployment: String,
    /// The present state.
    pub from: Moment,
    /// The state that the request asks for.
    pub to: Moment,
    /// Whether the change would be made.
    pub would: Would,
    /// Why it would be refused.
    pub refusal: Option<String>,
    /// The part of new flows that would go to green, once the change has taken effect.
    pub green_share: f64,
    /// What a share would divide.
    pub divide_by: DivideBy,
    /// When the switch would take effect, or the ramp begin; `None` is at once.
    pub at: Option<jiff::Timestamp>,
    /// The time in which the share would move.
    #[serde(serialize_with = "json::duration")]
    pub ramp: Option<Duration>,
    /// The time for a confirmation. Without one the switch would be taken back.
    #[serde(serialize_with = "json::duration")]
    pub confirm_within: Option<Duration>,
    /// The conditions that would take the switch back, unless it is confirmed before.
    pub revert_if: Vec<String>,
    /// Conditions that were asked for, but that the old colour meets itself: going back would not help.
    pub not_armed: Vec<String>,
    /// What would happen to open flows.
    pub on_switch: OnSwitch,
    /// How long a drain may last; `None` is without end, or no drain. JSON has it in the form of the configuration.
    #[serde(serialize_with = "json::duration")]
    pub drain_timeout: Option<Duration>,
    /// The open flows, by what would happen to them. Without a change, all stay.
    pub flows: Fates,
    /// The number of client addresses with open flows.
    pub clients: u64,
    /// These clients, by the worst that would happen to one of their flows.
    pub clients_by_fate: Fates,
    /// The same by service, in the order of their names.
    pub services: Vec<ServiceFates>,
    /// How full the flow tables are.
    pub flow_table: TablesUse,
    /// What the switch would wait for in a frozen window; `None` if nothing would be frozen.
    pub freeze: Option<WindowOutlook>,
    /// The services with a mirror, by name. If another colour becomes live, the copies go to the colour that is live now.
    pub mirrored: Vec<String>,
    /// The backends of the colours that would get new flows, by service and address.
    pub target: Vec<TargetBackend>,
    /// The gates that would be asked, each with `before` or `after` the switch; see [`with_gates`](Self::with_gates).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<String>,
}

impl DryRun {
    /// The same, with the gates that whoever switches would ask. A dry run asks none.
    pub fn with_gates(self, gates: &[Gate]) -> Self {
        let changes = matches!(self.would, Would::Switch | Would::Split);
        let asked = gates.iter().filter(|_| changes).map(|gate| format!("{}: {gate}", gate.when.name()));
        Self { gates: asked.collect(), ..self }
    }
}

/// The open flows of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceFates {
    /// Its name.
    pub service: String,
    /// Its open flows, by what would happen to them.
    pub flows: Fates,
    /// The number of client addresses with open flows.
    pub clients: u64,
    /// These clients, by the worst that would happen to one of their flows.
    pub clients_by_fate: Fates,
}

impl Instance {
    /// What [`switch`](Self::switch) would do now. Changes nothing.
    ///
    /// Connects to the backends of the target, to find out whether they are there. This takes a few seconds if many of them are not.
    pub fn dry_run(&self, deployment: &str, request: &SwitchRequest) -> Result<DryRun, Error> {
        self.rehearse(deployment, request, Kind::Switch)
    }

    /// What [`rollback`](Self::rollback) would do now. Changes nothing; see [`dry_run`](Self::dry_run).
    pub fn dry_run_rollback(&self, deployment: &str, request: &SwitchRequest) -> Result<DryRun, Error> {
        self.rehearse(deployment, request, Kind::Rollback)
    }

    /// What [`split`](Self::split) would do now. Changes nothing; see [`dry_run`](Self::dry_run).
    pub fn dry_run_split(&self, deployment: &str, request: &SplitRequest) -> Result<DryRun, Error> {
        self.rehearse(deployment, &request.as_switch(), request.kind())
    }

    /// What [`switch_in_window`](Self::switch_in_window) would do now. Changes nothing; see [`dry_run`](Self::dry_run).
    pub fn dry_run_in_window(
        &self,
        deployment: &str,
        request: &SwitchRequest,
        window: &FreezeWindow,
    ) -> Result<DryRun, Error> {
        request.check_for_window()?;
        let mut dry_run = self.dry_run(deployment, request)?;
        let (index, _) = self.deployment(deployment)?;
        if let Some(from) = self.outlook(deployment, index, request, Kind::Switch)?.left_colour() {
            dry_run.freeze = Some(self.window_outlook(index, from, dry_run.on_switch, window.max)?);
        }
        Ok(dry_run)
    }

    fn rehearse(&self, name: &str, request: &SwitchRequest, kind: Kind) -> Result<DryRun, Error> {
        let (index, _) = self.deployment(name)?;
        let Outlook { row, from, then: (word, terms), asked, divide_by, on_switch, changes } =
            self.outlook(name, index, request, kind)?;
        let is_whole = matches!(asked.target_share(), 0 | FULL_SHARE);
        let (would, refusal) = match changes {
            Ok(true) => (if is_whole { Would::Switch } else { Would::Split }, None),
            Ok(false) => (Would::Nothing, None),
            Err(error) if error.class() == ErrorClass::Refused => (Would::Refuse, Some(error.to_string())),
            Err(error) => return Err(error),
        };
        // What changes nothing, or is refused, arms nothing.
        let mut armed = if would == Would::Switch { request.clone() } else { SwitchRequest::default() };
        let not_armed = self.not_armed(name, index, &mut armed, kind)?;
        let named = |conditions: Vec<Condition>| conditions.iter().map(ToString::to_string).collect();
        let to = Moment { generation: asked.generation(), live: asked.live() };
        let colours = if is_whole { vec![to.live] } else { Colour::ALL.to_vec() };
        let tables = Tables::open(&self.paths)?;
        let running = Running::read(&self.words, &tables)?;
        let census = Census::take(self, &tables, index, word, &terms)?;
        let Affected { flows, clients: clients_by_fate } = census.all;
        Ok(DryRun {
            deployment: name.to_owned(),
            from: from.moment(),
            to,
            would,
            refusal,
            green_share: f64::from(asked.target_share()) / f64::from(FULL_SHARE),
            divide_by,
            at: armed.at,
            ramp: armed.ramp,
            confirm_within: armed.confirm_within,
            revert_if: named(armed.revert_if),
            not_armed: named(not_armed),
            on_switch,
            drain_timeout: drain_timeout_of(&row).filter(|_| is_whole && on_switch == OnSwitch::Drain),
            flows,
            clients: clients_by_fate.sum(),
            clients_by_fate,
            services: services(&running, index, &census),
            flow_table: census.tables,
            freeze: None,
            mirrored: mirrored(&running, index),
            target: self.target(&running, index, &colours)?,
            gates: Vec::new(),
        })
    }

    fn target(&self, running: &Running, deployment: u16, colours: &[Colour]) -> Result<Vec<TargetBackend>, Error> {
        let services: Vec<_> = running.services_of(deployment).collect();
        Ok(target::examine(&services, colours, pins::is_in_this_namespace(&self.paths)?))
    }
}

fn services(running: &Running, deployment: u16, census: &Census) -> Vec<ServiceFates> {
    let mut services: Vec<_> = running
        .services_of(deployment)
        .map(|service| {
            let Affected { flows, clients } = census.services.get(&service.index).copied().unwrap_or_default();
            ServiceFates { service: service.name.clone(), flows, clients: clients.sum(), clients_by_fate: clients }
        })
        .collect();
    services.sort_by(|a, b| a.service.cmp(&b.service));
    services
}

fn mirrored(running: &Running, deployment: u16) -> Vec<String> {
    let services = running.services_of(deployment).filter(|service| service.is_mirrored);
    let mut names: Vec<_> = services.map(|service| service.name.clone()).collect();
    names.sort();
    names
}
