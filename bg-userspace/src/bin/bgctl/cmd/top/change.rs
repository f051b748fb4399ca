//! Changes: what each would do, as a question, and making it as it was shown.

use bg_userspace::{
    ConfirmRequest, DEFAULT_FREEZE, DryRun, Fates, FreezeRequest, Instance, Paths, SwitchRequest, TargetBackend, Would,
    config::{Gate, OnSwitch, When},
    gates,
};
use tokio::sync::mpsc::UnboundedSender;

use super::Event;
use crate::{cmd::words::percent, output};

/// A kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Switch,
    Rollback,
    Confirm,
    Freeze,
    Thaw,
}

impl Verb {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Switch => "switch",
            Self::Rollback => "rollback",
            Self::Confirm => "confirm",
            Self::Freeze => "freeze",
            Self::Thaw => "thaw",
        }
    }
}

/// A change of a deployment, as somebody who looks at the screen wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) verb: Verb,
    pub(super) deployment: String,
    /// The generation on the screen. At another one, the change is refused.
    pub(super) generation: u32,
}

/// A change that can be made, with what it does.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) change: Change,
    /// What it does, one sentence each.
    pub(super) lines: Vec<String>,
    /// What was rehearsed.
    request: SwitchRequest,
    /// Whom a switch asks.
    gates: Vec<Gate>,
}

/// What a change would do, or why it cannot be made.
pub(super) type Rehearsal = Result<Question, String>;

/// What was done, or why not.
pub(super) type Made = Result<String, String>;

/// What a thread does for a dialog, which has a number.
#[derive(Debug)]
pub(super) enum Task {
    Rehearse(u64, Paths, Change),
    Make(u64, Paths, Question),
}

impl Task {
    /// Does it, and sends what came of it.
    pub(super) fn run(self, events: &UnboundedSender<Event>) {
        let event = match self {
            Self::Rehearse(number, paths, change) => Event::Rehearsed(number, change.rehearse(&paths)),
            Self::Make(number, paths, question) => Event::Made(number, question.make(&paths)),
        };
        // An error means that this program ends.
        let _ = events.send(event);
    }
}

impl Change {
    fn rehearse(self, paths: &Paths) -> Rehearsal {
        let instance = Instance::open(paths).map_err(told)?;
        let deployment = &self.deployment;
        // The generation also makes a rollback of a rollback unambiguous.
        let request = SwitchRequest { if_generation: Some(self.generation), ..SwitchRequest::default() };
        let dry_run = match self.verb {
            Verb::Switch => instance.dry_run(deployment, &request).map_err(told)?,
            Verb::Rollback => instance.dry_run_rollback(deployment, &request).map_err(told)?,
            Verb::Confirm | Verb::Freeze | Verb::Thaw => {
                let lines = self.without_dry_run(&instance)?;
                return Ok(Question { change: self, lines, request, gates: Vec::new() });
            }
        };
        match dry_run.would {
            Would::Refuse => Err(output::advice(&dry_run.refusal.unwrap_or_default()).into_owned()),
            Would::Nothing => Err(format!("{} is live already; nothing would change", dry_run.to.live.name())),
            Would::Switch | Would::Split => {
                // What is configured may change without a generation.
                let request = match self.verb {
                    Verb::Switch => {
                        SwitchRequest { to: Some(dry_run.to.live), on_switch: Some(dry_run.on_switch), ..request }
                    }
                    _ => request,
                };
                let gates = match self.verb {
                    Verb::Switch => instance.gates(deployment).map_err(told)?,
                    _ => Vec::new(),
                };
                let asked = gates.iter().map(|gate| match gate.when {
                    When::Before => format!("Before the switch, a gate is asked: {gate}."),
                    When::After => format!("Before it is confirmed, a gate is asked: {gate}."),
                });
                let lines = lines_of(&dry_run).into_iter().chain(asked).collect();
                Ok(Question { change: self, lines, request, gates })
            }
        }
    }

    /// The question for a change that does not touch open flows.
    fn without_dry_run(&self, instance: &Instance) -> Result<Vec<String>, String> {
        let status = self.status_as_shown(instance)?;
        let bg_userspace::DeploymentStatus { live, idle, previous, generation, .. } = &status;
        let is_guarded = status.confirm_deadline.is_some() || !status.revert_if.is_empty();
        let lines = match self.verb {
            Verb::Confirm if !is_guarded => return Err("no switch waits for a confirmation".to_owned()),
            Verb::Confirm => {
                let back = if status.pending.is_some() { live } else { previous };
                let deadline = status.confirm_deadline.map(|deadline| format!(" at {deadline}"));
                let conditions = status.revert_if.iter().map(|condition| format!(" if {condition}"));
                let when: Vec<_> = deadline.into_iter().chain(conditions).collect();
                vec![
                    format!("generation {generation}, {live} is live: keep it"),
                    format!("Without it, the data path goes back to {back}{}.", when.join(", or")),
                ]
            }
            Verb::Freeze => vec![
                format!(
                    "New flows wait, for {} at most, then go on to {live}.",
                    humantime::format_duration(DEFAULT_FREEZE)
                ),
                format!("Open flows go on: {live} {}, {idle} {}.", of(&status, live), of(&status, idle)),
            ],
            _ if status.frozen_until.is_none() => return Err("it is not frozen".to_owned()),
            _ => vec![format!("{} go on to {live}, in order.", output::count(status.held as usize, "held packet"))],
        };
        Ok(lines)
    }

    /// The present status, if it is still that of the screen.
    fn status_as_shown(&self, instance: &Instance) -> Result<bg_userspace::DeploymentStatus, String> {
        let status = instance.status(Some(&self.deployment)).map_err(told)?.deployments.into_iter().next();
        let status = status.ok_or_else(|| "it is not there any more".to_owned())?;
        if status.generation == self.generation {
            return Ok(status);
        }
        let (shown, now) = (self.generation, status.generation);
        Err(format!("it was changed meanwhile: generation {shown} was shown, now it is {now}; nothing was done"))
    }
}

fn of(status: &bg_userspace::DeploymentStatus, colour: &str) -> u64 {
    if colour == "blue" { status.flows.blue } else { status.flows.green }
}

impl Question {
    fn make(self, paths: &Paths) -> Made {
        let instance = Instance::open(paths).map_err(told)?;
        let Self { change, request, gates, .. } = self;
        let name = &change.deployment;
        let if_generation = request.if_generation;
        let done = match change.verb {
            // If this program ends while gates are asked, the data path goes back by itself.
            Verb::Switch => gates::switch(&instance, name, &request, &gates, &mut |_| {}).map(|gated| {
                if gates.is_empty() { "" } else { "all gates passed, " }.to_owned() + &moved(&gated.switched)
            }),
            Verb::Rollback => instance.rollback(name, &request).map(|switched| moved(&switched)),
            Verb::Confirm => {
                let confirmed = instance.confirm(name, &ConfirmRequest { if_generation, reason: None });
                confirmed.map(|switched| {
                    format!("confirmed, {} stays live, generation {}", switched.to.live.name(), switched.to.generation)
                })
            }
            Verb::Freeze => {
                change.status_as_shown(&instance)?;
                instance.freeze(name, &FreezeRequest::default()).map(|frozen| {
                    instance.thaw_at_the_end(&frozen);
                    format!("frozen until {} at most", frozen.frozen_until)
                })
            }
            Verb::Thaw => instance.thaw(name, None).map(|thawed| {
                let played = output::count(thawed.played_back as usize, "held packet");
                if thawed.changed { format!("thawed, {played} played back") } else { "it was not frozen".to_owned() }
            }),
        };
        let warnings = instance.warnings();
        let warned = |text: String| [vec![text], warnings].concat().join("; ");
        done.map(|text| warned(format!("{name}: {text}"))).map_err(told)
    }
}

fn told(error: bg_userspace::Error) -> String {
    output::advice(&format!("{:#}", anyhow::Error::from(error))).into_owned()
}

fn moved(switched: &bg_userspace::Switched) -> String {
    let (from, to) = (switched.from.live.name(), switched.to.live.name());
    let generation = switched.to.generation;
    let receipt = switched.receipt.as_ref().map(|receipt| format!("; {}", receipt.to_string().trim()));
    format!("{from} -> {to}, generation {generation}{}", receipt.unwrap_or_default())
}

/// What a dry run says, one sentence each.
fn lines_of(dry_run: &DryRun) -> Vec<String> {
    let DryRun { from, to, green_share, flows, clients, clients_by_fate, .. } = dry_run;
    let mut lines = vec![match dry_run.would {
        Would::Split => format!(
            "{} % of new flows to green, generation {} -> {}",
            percent(*green_share),
            from.generation,
            to.generation
        ),
        _ => format!("{} -> {}, generation {} -> {}", from.live.name(), to.live.name(), from.generation, to.generation),
    }];
    let limit = match (dry_run.on_switch, dry_run.drain_timeout) {
        (OnSwitch::Drain, Some(timeout)) => format!(" (for {} at most)", humantime::format_duration(timeout)),
        _ => String::new(),
    };
    let Fates { stay, moved, reset } = flows;
    lines.push(format!("Open flows: {stay} stay{limit}, {moved} move, {reset} reset."));
    lines.push(format!(
        "Clients: {clients}, of which {} move and {} are reset.",
        clients_by_fate.moved, clients_by_fate.reset
    ));
    let is_ready = |backend: &&TargetBackend| backend.ready == Some(true);
    for colour in bg_userspace::Colour::ALL {
        let backends: Vec<_> = dry_run.target.iter().filter(|backend| backend.colour == colour).collect();
        let ready = backends.iter().copied().filter(is_ready).count();
        if !backends.is_empty() {
            lines.push(format!("{}: {ready} of {} ready.", colour.name(), output::count(backends.len(), "backend")));
        }
    }
    for backend in dry_run.target.iter().filter(|backend| !is_ready(backend)) {
        let state = if backend.ready == Some(false) { "NOT READY" } else { "not known to be ready" };
        let why = backend.why.as_deref().map_or_else(String::new, |why| format!(": {why}"));
        lines.push(format!("  {} {} {state}{why}", backend.service, backend.backend));
    }
    lines
}

#[cfg(test)]
impl Question {
    /// A question about nothing in particular.
    pub(super) fn of(change: Change) -> Self {
        let lines = (0..12).map(|nth| format!("{nth}: 120 stay, 0 move, 0 reset")).collect();
        Self { change, lines, request: SwitchRequest::default(), gates: Vec::new() }
    }
}
