//! Freezing a deployment: new flows wait, while those in flight go on.
//!
//! A freeze opens the deployment's queue ([`crate::hold`]), writes the instant at which it ends into the terms, and sets the flag HOLD of the live
//! word. It does not change the generation. From then on, packets that would open a flow are held. At that instant they go on, whether a
//! process lives or not: the packet or command that notices clears the flag.
//!
//! A thaw plays the queue back before it clears the flag. Packets that arrive meanwhile are held behind the others, so no
//! packet overtakes another one of its flow. If a thaw is killed, the next command completes it.

use std::time::{Duration, Instant};

use bg_common::{ClockId, LiveFlags, Timing};
use serde::Serialize;

use crate::{
    Error, Instance, Refusal, SwitchRequest,
    fence::Fence,
    history::{Action, Moment},
    hold::{HeldLog, Played, Player},
    live::{exchange, now},
    lock::{Lock, Recording},
    pins,
    running::{deployment_rows, text},
    state::Change,
    sys::apart,
    time::moment_of,
};

/// How long a freeze lasts unless somebody says otherwise.
pub const DEFAULT_FREEZE: Duration = Duration::from_secs(10);

/// For so long new packets wait behind those that are being played back, at most. If the process is killed meanwhile, they go on then.
const PLAY_BACK: Duration = Duration::from_secs(5);

const BY_ITSELF: &str = "the freeze ended by itself";

/// The options of a freeze. The default holds packets for [`DEFAULT_FREEZE`] at most.
#[derive(Clone, Debug, Default)]
pub struct FreezeRequest {
    /// After this time the freeze ends by itself; `None` is [`DEFAULT_FREEZE`].
    pub max: Option<Duration>,
    /// Drop packets rather than hold them.
    pub drop: bool,
    /// The reason, for the journal.
    pub reason: Option<String>,
}

/// A frozen deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Frozen {
    /// Name of the deployment.
    pub deployment: String,
    /// Its state, which a freeze does not change.
    #[serde(flatten)]
    pub state: Moment,
    /// When the freeze ends by itself.
    pub frozen_until: jiff::Timestamp,
    /// Whether packets are dropped rather than held.
    pub drop: bool,
    /// The same instant in nanoseconds of `CLOCK_BOOTTIME`.
    #[serde(skip)]
    pub(crate) until: u64,
}

/// A deployment that is not frozen any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Thawed {
    /// Name of the deployment.
    pub deployment: String,
    /// Whether it was frozen.
    pub changed: bool,
    /// Its state, which a thaw does not change.
    #[serde(flatten)]
    pub state: Moment,
    /// How many packets were played back.
    pub played_back: u64,
    /// How many packets were too old for that, or their interface was gone.
    pub expired: u64,
    /// When new flows went on.
    #[serde(skip)]
    pub(crate) at: Instant,
}

impl Instance {
    /// Freezes a deployment, or gives a frozen one another end. When this returns, no CPU opens a flow of it.
    pub fn freeze(&self, deployment: &str, request: &FreezeRequest) -> Result<Frozen, Error> {
        let (frozen, recorded) = self.freeze_now(deployment, request)?;
        recorded.map(|()| frozen)
    }

    /// The same, and whether it could be recorded.
    pub(crate) fn freeze_now(
        &self,
        deployment: &str,
        request: &FreezeRequest,
    ) -> Result<(Frozen, Result<(), Error>), Error> {
        let (index, _) = self.deployment(deployment)?;
        pins::check_own_namespace(&self.paths)?;
        let max = request.max.unwrap_or(DEFAULT_FREEZE);
        if max > SwitchRequest::LONGEST {
            let [longest, max] = [SwitchRequest::LONGEST, max].map(humantime::format_duration);
            return Err(Error::Unrepresentable { what: format!("a freeze takes {longest} at most, not {max}") });
        }
        let mut fence = Fence::prepare(&self.paths)?;
        let recording = Recording::begin(&self.paths);
        let held = HeldLog::open(&self.paths)?;
        let lock = Lock::hold(&self.paths)?;
        let over = self.over(index, &held);
        if over.is_some() {
            self.release(index, &held)?;
        }
        held.begin(index, request.drop);
        let until = now(ClockId::Boot).saturating_add(u64::try_from(max.as_nanos()).unwrap_or(u64::MAX));
        self.hold_until(deployment, index, until, &mut fence)?;
        drop(lock);
        let _ = self.end_confined();
        let state = self.words.reading(index, 0).moment();
        let change = Change { reason: request.reason.clone(), ..change(deployment, Action::Freeze, state) };
        let over = over.map(|until| by_itself(deployment, state, until));
        let recorded = self.record_hold(deployment, Action::Freeze, over.into_iter().chain([change]), recording);
        let frozen_until = moment_of(until, ClockId::Boot).unwrap_or(jiff::Timestamp::MAX);
        let frozen = Frozen { deployment: deployment.to_owned(), state, frozen_until, drop: request.drop, until };
        Ok((frozen, recorded))
    }

    /// Ends a freeze: held packets go on, in order. Does nothing if the deployment is not frozen.
    pub fn thaw(&self, deployment: &str, reason: Option<&str>) -> Result<Thawed, Error> {
        self.thaw_if(deployment, reason, |_| true)
    }

    /// The same if `is_meant` says so of the end of the freeze, in nanoseconds of `CLOCK_BOOTTIME`.
    pub(crate) fn thaw_if(
        &self,
        deployment: &str,
        reason: Option<&str>,
        is_meant: impl FnOnce(Option<u64>) -> bool,
    ) -> Result<Thawed, Error> {
        let (index, _) = self.deployment(deployment)?;
        pins::check_own_namespace(&self.paths)?;
        let recording = Recording::begin(&self.paths);
        let held = HeldLog::open(&self.paths)?;
        let lock = Lock::hold(&self.paths)?;
        let changed = self.is_unreleased(index, &held) && is_meant(self.holds_until(index));
        let over = self.over(index, &held);
        let played = if changed { self.release(index, &held)? } else { Played::default() };
        let at = Instant::now();
        drop(lock);
        let _ = self.end_confined();
        let state = self.words.reading(index, 0).moment();
        if changed {
            let thaw = || Change { reason: reason.map(str::to_owned), ..change(deployment, Action::Thaw, state) };
            let change = over.map_or_else(thaw, |until| by_itself(deployment, state, until));
            self.record_hold(deployment, Action::Thaw, [change], recording)?;
        } else {
            // This may be the repetition of one that was killed before it was recorded.
            let missed = self.state.record(Some(&self.words), recording, &[]).err();
            self.state.warn(missed.map(|error| format!("{:#}", anyhow::Error::from(error))));
        }
        let Played { packets: played_back, expired, .. } = played;
        Ok(Thawed { deployment: deployment.to_owned(), changed, state, played_back, expired, at })
    }

    /// Has another process, which outlives this one, play the held packets back when the freeze ends by itself. Without it, or
    /// if it is killed, the next command does that, and until then clients have to retransmit.
    pub fn thaw_at_the_end(&self, frozen: &Frozen) {
        const LOOK: Duration = Duration::from_millis(50);
        // A little early: once the freeze has ended by itself, new packets no longer wait behind those that are held.
        let end = frozen.until.saturating_sub(Duration::from_millis(5).as_nanos() as u64);
        let wait = || {
            let Ok((index, _)) = self.deployment(&frozen.deployment) else { return Vec::new() };
            while self.holds_until(index) == Some(frozen.until) && self.is_current() {
                let left = Duration::from_nanos(end.saturating_sub(now(ClockId::Boot)));
                if left.is_zero() {
                    let _ = self.thaw_if(&frozen.deployment, Some(BY_ITSELF), |until| until == Some(frozen.until));
                    break;
                }
                std::thread::sleep(left.min(LOOK));
            }
            Vec::new()
        };
        // Nobody waits for its answer.
        let _ = apart(Duration::ZERO, None, wait);
    }

    /// Ends the freezes whose time is over, and plays back what is left of them. What another process is working on is left to it.
    pub(crate) fn release_overdue(&self) -> Result<(), Error> {
        let held = HeldLog::open(&self.paths)?;
        let overdue = || {
            let rows = deployment_rows(&self.words);
            rows.filter_map(|(index, row)| Some((index, text(&row.name), self.over(index, &held)?)))
        };
        if overdue().next().is_none() || !pins::is_in_this_namespace(&self.paths)? {
            return Ok(());
        }
        let recording = Recording::begin(&self.paths);
        let lock = Lock::hold_if_free(&self.paths)?;
        let mut changes = Vec::new();
        for (index, name, until) in overdue().collect::<Vec<_>>() {
            self.release(index, &held)?;
            changes.push(by_itself(&name, self.words.reading(index, 0).moment(), until));
        }
        drop(lock);
        self.state.record(Some(&self.words), recording, &changes)
    }

    /// When a freeze ends by itself, in nanoseconds of `CLOCK_BOOTTIME`; `None` if the deployment is not frozen.
    pub(crate) fn holds_until(&self, index: u16) -> Option<u64> {
        let word = self.words.live.read(index.into());
        let is_held = word.flags().has(LiveFlags::HOLD);
        is_held.then(|| self.words.timing.read(index.into())[word.terms_slot()].hold_until)
    }

    /// The same, and `None` also if that has passed.
    pub(crate) fn frozen_until(&self, index: u16) -> Option<u64> {
        self.holds_until(index).filter(|until| now(ClockId::Boot) < *until)
    }

    fn is_frozen(&self, index: u16) -> bool {
        self.frozen_until(index).is_some()
    }

    /// When a freeze has ended by itself, in nanoseconds of `CLOCK_BOOTTIME`, if no command has ended it since.
    fn over(&self, index: u16, held: &HeldLog) -> Option<u64> {
        let is_over = !self.is_frozen(index) && self.is_unreleased(index, held);
        let slot = self.words.live.read(index.into()).terms_slot();
        is_over.then(|| self.words.timing.read(index.into())[slot].hold_until)
    }

    /// Whether a freeze is still to be ended by a command.
    fn is_unreleased(&self, index: u16, held: &HeldLog) -> bool {
        held.is_open(index) || self.holds_until(index).is_some()
    }

    /// Plays the queue of a deployment back and closes it, then clears the flag HOLD. The caller holds the lock of the queues.
    fn release(&self, index: u16, held: &HeldLog) -> Result<Played, Error> {
        if !held.is_open(index) {
            self.clear_hold(index);
            return Ok(Played::default());
        }
        let player = Player::new(&self.paths, held)?;
        let name = text(&self.words.deployments.read(index.into()).name);
        let until = now(ClockId::Boot) + PLAY_BACK.as_nanos() as u64;
        match self.holds_until(index) {
            // Else the packets that arrive meanwhile would overtake the others when the freeze ends by itself.
            Some(end) if end < until => self.hold_until(&name, index, until, &mut Fence::prepare(&self.paths)?)?,
            Some(_) => self.hold_no_longer_than(index, until),
            None => {}
        }
        let played = player.play(index)?;
        self.clear_hold(index);
        self.state.warn(played.is_damaged.then(|| {
            format!(
                "the log of held packets was damaged. Packets for deployment \"{name}\" that are lost in it have to be sent again by their senders"
            )
        }));
        Ok(played)
    }

    /// Sets the end of a freeze and the flag HOLD. When this returns, no CPU opens a flow.
    fn hold_until(&self, name: &str, index: u16, until: u64, fence: &mut Fence) -> Result<(), Error> {
        let _switch = Lock::switch(&self.paths)?;
        loop {
            let reading = self.settled(index)?;
            let word = reading.stored;
            if word.generation() == 0 {
                return Err(Refusal::NotRunning { deployment: name.to_owned() }.into());
            }
            // A packet that takes a switch back copies the end of a freeze.
            let Some(claim) = self.claim(index, &reading, fence)? else { continue };
            // Packets read it only if the flag is set. Until a word takes effect, they go by the one before, which has the other slot.
            self.words.timing.update(index.into(), |slots| slots.iter_mut().for_each(|slot| slot.hold_until = until));
            let frozen = word.with_flags(word.flags().with(LiveFlags::HOLD));
            if claim.is_over() || exchange(&self.words, index, word, frozen).is_err() {
                continue;
            }
            fence.wait()?;
            self.end_reprieve(index, &reading, &claim);
            // A packet that had found the end of an earlier freeze passed may have ended this one.
            if self.holds_until(index) == Some(until) || now(ClockId::Boot) >= until {
                return Ok(());
            }
        }
    }

    /// Brings the end of a freeze forward. Nothing depends on when packets notice. While another process switches, it stays where it is.
    fn hold_no_longer_than(&self, index: u16, until: u64) {
        if let Ok(_switch) = Lock::switch_if_free(&self.paths) {
            let earlier = |slot: &mut Timing| slot.hold_until = slot.hold_until.min(until);
            self.words.timing.update(index.into(), |slots| slots.iter_mut().for_each(earlier));
        }
    }

    fn clear_hold(&self, index: u16) {
        loop {
            let word = self.words.live.read(index.into());
            let thawed = word.with_flags(word.flags().without(LiveFlags::HOLD));
            if exchange(&self.words, index, word, thawed).is_ok() {
                return;
            }
        }
    }

    fn record_hold(
        &self,
        name: &str,
        action: Action,
        changes: impl IntoIterator<Item = Change>,
        recording: Option<Recording>,
    ) -> Result<(), Error> {
        let changes: Vec<_> = changes.into_iter().collect();
        let recorded = self.state.record(Some(&self.words), recording, &changes);
        recorded.map_err(|source| Error::DoneNotRecorded {
            done: format!("the {} of deployment \"{name}\" is done", action.name()),
            source: Box::new(source),
        })
    }
}

/// A change that leaves the state as it is.
fn change(name: &str, action: Action, state: Moment) -> Change {
    Change { deployment: name.to_owned(), action, from: Some(state), to: Some(state), ..Change::default() }
}

/// The end of a freeze that nobody has ended.
fn by_itself(name: &str, state: Moment, until: u64) -> Change {
    let (at, reason) = (moment_of(until, ClockId::Boot), Some(BY_ITSELF.to_owned()));
    Change { at, reason, by_kernel: true, ..change(name, Action::Thaw, state) }
}
