//! `POST /v1/deployments/NAME/VERB`: the commands that change what is live.

use std::{sync::Arc, time::Duration};

use axum::{
    Extension,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    forbid::forbid,
    options::{self, Confirm, Drain, Freeze, Rollback, Split, Switch, Thaw},
    problem::Problem,
    repeats::{Answer, Repeat, Ticket},
    role::{Identity, Role},
    shared::Api,
};
use crate::{
    ConfirmRequest, DrainRequest, Drained, DryRun, Error, FreezeWindow, Instance, Refusal, SwitchRequest,
    config::Gate,
    gates::{self, Progress},
    history::Caller,
    serve::event::{self, Event},
};

/// How often a wait looks for flows that are left.
const PAUSE: Duration = Duration::from_millis(200);

/// Changes what is live.
pub(super) async fn change(
    State(api): State<Arc<Api>>,
    Path((name, verb)): Path<(String, String)>,
    Extension(identity): Extension<Identity>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let asked = Asked { name, verb, identity, headers, body };
    match asked.answer(api).await {
        Ok(answer) => answer.into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// A request.
struct Asked {
    name: String,
    verb: String,
    identity: Identity,
    headers: HeaderMap,
    body: Bytes,
}

/// What is to be done.
enum Work {
    /// It does not wait for anybody.
    Short(Call),
    /// It may last, and changes nothing.
    Look(Call),
    /// It lasts if the deployment has gates.
    Gated(Box<Gated>),
    /// It counts flows, and may wait for them.
    Drain(DrainRequest),
}

/// A switch with the gates of its deployment.
struct Gated {
    request: SwitchRequest,
    window: Option<FreezeWindow>,
    skip_gates: bool,
}

type Call = Box<dyn FnOnce(&Instance) -> Result<Value, Error> + Send>;

impl Asked {
    async fn answer(self, api: Arc<Api>) -> Result<Answer, Problem> {
        let if_match = if_match(&self.headers)?;
        let work = self.work(&api, if_match)?;
        let etag = self.headers.get(header::IF_MATCH).map_or(&b""[..], HeaderValue::as_bytes);
        let request = [self.name.as_bytes(), self.verb.as_bytes(), etag, &self.body];
        let ticket = match api.repeats.begin(&self.identity, &self.headers, &request)? {
            Repeat::Again(answer) => return Ok(answer),
            Repeat::First(ticket) => ticket,
        };
        let is_wait = matches!(&work, Work::Drain(request) if request.wait || request.timeout.is_some());
        let done = self.perform(api, work, ticket, if_match);
        if is_wait {
            // If the client is gone, nobody waits any more.
            return Ok(done.await);
        }
        // It is done, and its answer is kept, also if the client does not wait for it.
        tokio::spawn(done).await.map_err(|error| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the controller has failed: {error}"))
        })
    }

    async fn perform(self, api: Arc<Api>, work: Work, ticket: Ticket, if_match: Option<u32>) -> Answer {
        let caller = caller(&self.identity, &self.request(), &self.body);
        let Self { name, verb, .. } = self;
        let refused = |error: Error| {
            let problem = Problem::from(&error);
            if if_match.is_some() { problem.or_precondition(&error) } else { problem }
        };
        let done = match work {
            Work::Drain(request) => drain(&api, &name, request, caller, if_match).await,
            Work::Short(call) => run(&api, caller, false, call).await.map_err(|told| told.map_or_else(busy, refused)),
            Work::Look(call) => match api.controller.look_for_long(call).await {
                Some(seen) => seen.map_err(refused),
                None => Err(busy()),
            },
            Work::Gated(gated) => match gated.call(&api, &name).await {
                Ok((lasts, call)) => {
                    run(&api, caller, lasts, call).await.map_err(|told| told.map_or_else(busy, refused))
                }
                Err(error) => Err(refused(error)),
            },
        };
        api.controller.look();
        let is_there =
            |view: Arc<crate::serve::view::View>| view.status.deployments.iter().any(|found| found.name == name);
        // A name that anybody makes up has no place among the numbers.
        if let Err(problem) = &done
            && api.controller.view().is_some_and(is_there)
        {
            let result = if problem.status.is_server_error() { "failed" } else { "refused" };
            api.metrics.refused(&name, &verb, result);
        }
        ticket.answer(&done)
    }

    fn work(&self, api: &Api, if_match: Option<u32>) -> Result<Work, Problem> {
        let name = self.name.clone();
        Ok(match self.verb.as_str() {
            "switch" => {
                let options: Switch = self.options()?;
                if options.has_commands() && !self.identity.is_root_here {
                    let why = "before and after are commands that run on this host: only its root may give them, over the Unix socket";
                    return Err(self.forbid(api, "root of this host", "with commands", why));
                }
                self.may_skip_gates(api, options.skip_gates)?;
                let window = options.window()?;
                let request = guarded(options.request(), if_match)?;
                let gated = Gated { request, window, skip_gates: options.skip_gates };
                if options.dry_run {
                    look(move |instance| gated.dry_run(instance, &name))
                } else {
                    Work::Gated(Box::new(gated))
                }
            }
            "rollback" => {
                let options: Rollback = self.options()?;
                self.may_skip_gates(api, options.skip_gates)?;
                let request = guarded(options.request(), if_match)?;
                match options.dry_run {
                    true => look(move |instance| instance.dry_run_rollback(&name, &request)),
                    false => short(move |instance| instance.rollback(&name, &request)),
                }
            }
            "split" => {
                let options: Split = self.options()?;
                self.may_skip_gates(api, options.skip_gates)?;
                let mut request = options.request();
                request.if_generation = agreed(request.if_generation, if_match)?;
                match options.dry_run {
                    true => look(move |instance| instance.dry_run_split(&name, &request)),
                    false => short(move |instance| instance.split(&name, &request)),
                }
            }
            "confirm" => {
                let options: Confirm = self.options()?;
                let if_generation = agreed(options.if_generation, if_match)?;
                let request = ConfirmRequest { if_generation, reason: options.reason() };
                short(move |instance| instance.confirm(&name, &request))
            }
            "freeze" => {
                let request = self.options::<Freeze>()?.request();
                short(move |instance| {
                    check_generation(instance, &name, if_match)?;
                    let frozen = instance.freeze(&name, &request)?;
                    instance.thaw_at_the_end(&frozen);
                    Ok(frozen)
                })
            }
            "thaw" => {
                let reason = self.options::<Thaw>()?.reason();
                short(move |instance| {
                    check_generation(instance, &name, if_match)?;
                    instance.thaw(&name, reason.as_deref())
                })
            }
            "drain" => Work::Drain(self.options::<Drain>()?.request()),
            verb => {
                let why = format!(
                    "no command \"{verb}\": switch, rollback, confirm, split, freeze, thaw and drain are there"
                );
                return Err(Problem::new(StatusCode::NOT_FOUND, why));
            }
        })
    }

    fn may_skip_gates(&self, api: &Api, skips: bool) -> Result<(), Problem> {
        if skips && self.identity.role < Role::Admin {
            return Err(self.forbid(api, Role::Admin.name(), "with skip_gates", "skip_gates needs the role admin"));
        }
        Ok(())
    }

    /// Refuses an option that this sender may not give.
    fn forbid(&self, api: &Api, needs: &'static str, with: &str, why: &str) -> Problem {
        forbid(api, &self.identity, needs, &format!("{} {with}", self.request()), why)
    }

    fn request(&self) -> String {
        format!("POST /v1/deployments/{}/{}", self.name, self.verb)
    }

    fn options<T: serde::de::DeserializeOwned>(&self) -> Result<T, Problem> {
        options::read(&self.headers, &self.body)
    }
}

impl Gated {
    fn gates(&self, instance: &Instance, name: &str) -> Result<Vec<Gate>, Error> {
        if self.skip_gates { Ok(Vec::new()) } else { instance.gates(name) }
    }

    fn dry_run(&self, instance: &Instance, name: &str) -> Result<DryRun, Error> {
        let gates = self.gates(instance, name)?;
        let dry_run = match &self.window {
            Some(window) => instance.dry_run_in_window(name, &self.request, window),
            None => instance.dry_run(name, &self.request),
        };
        dry_run.map(|dry_run| dry_run.with_gates(&gates))
    }

    /// What is to be done, and whether it may last: that is known once it is known whether there are gates.
    async fn call(self: Box<Self>, api: &Api, name: &str) -> Result<(bool, Call), Error> {
        let asked = name.to_owned();
        let (gated, gates) = api
            .controller
            .on_instance(None, move |instance| self.gates(instance, &asked).map(|gates| (self, gates)))
            .await?;
        let Gated { request, window, .. } = *gated;
        let (name, controller) = (name.to_owned(), api.controller.clone());
        let deployment = name.clone();
        let mut tell = move |progress: Progress<'_>| {
            if let Progress::Told(report) = progress {
                let (time, deployment) = (jiff::Timestamp::now(), deployment.clone());
                controller.publish(Event::Gate(event::Asked { time, deployment, report: report.clone() }));
            }
        };
        Ok(match window {
            Some(window) => {
                let switch = move |instance: &Instance| {
                    gates::switch_in_window(instance, &name, &request, &window, &gates, &mut tell)
                };
                (true, call(switch))
            }
            // Without gates it is as short as any other change. It looks again whether there are some.
            None => {
                (!gates.is_empty(), call(move |instance| gates::switch(instance, &name, &request, &gates, &mut tell)))
            }
        })
    }
}

fn short<T: Serialize>(call: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static) -> Work {
    Work::Short(self::call(call))
}

fn look<T: Serialize>(call: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static) -> Work {
    Work::Look(self::call(call))
}

fn call<T: Serialize>(call: impl FnOnce(&Instance) -> Result<T, Error> + Send + 'static) -> Call {
    Box::new(move |instance| call(instance).map(json))
}

/// Makes a change. `None` is that too much that lasts is going on.
async fn run(api: &Api, caller: Caller, lasts: bool, call: Call) -> Result<Value, Option<Error>> {
    if !lasts {
        return api.controller.on_instance(Some(caller), call).await.map_err(Some);
    }
    let done = api.controller.on_instance_for_long(caller, call).await;
    done.map_or(Err(None), |done| done.map_err(Some))
}

fn busy() -> Problem {
    Problem::busy("too many changes that may last are being made: try again")
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).expect("a result can be JSON")
}

/// Who makes a change, and by which request. A long body is cut.
pub(super) fn caller(identity: &Identity, request: &str, body: &[u8]) -> Caller {
    const MOST: usize = 500;
    let text = String::from_utf8_lossy(body);
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MOST).collect();
    Caller { who: identity.who.clone(), command: format!("{request} {text}").trim_end().to_owned() }
}

/// The generation of `If-Match`; `*` is any.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u32>, Problem> {
    let mut values = headers.get_all(header::IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" && values.next().is_none() {
        return Ok(None);
    }
    let digits = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
    let generation = digits.parse().ok().filter(|_| is_number && values.next().is_none());
    generation
        .map(Some)
        .ok_or_else(|| Problem::usage("the header If-Match takes one generation, as in `If-Match: \"7\"`"))
}

fn guarded(request: SwitchRequest, if_match: Option<u32>) -> Result<SwitchRequest, Problem> {
    Ok(SwitchRequest { if_generation: agreed(request.if_generation, if_match)?, ..request })
}

fn agreed(if_generation: Option<u32>, if_match: Option<u32>) -> Result<Option<u32>, Problem> {
    match (if_generation, if_match) {
        (Some(body), Some(header)) if body != header => {
            Err(Problem::usage(format!("if_generation is {body}, but If-Match has generation {header}")))
        }
        (body, header) => Ok(body.or(header)),
    }
}

/// Refuses another generation, for commands that change none.
fn check_generation(instance: &Instance, name: &str, expected: Option<u32>) -> Result<(), Error> {
    let Some(expected) = expected else { return Ok(()) };
    let (index, _) = instance.deployment(name)?;
    let word = instance.live_words().into_iter().find(|(of, _)| *of == index);
    match word.map(|(_, word)| word.generation()) {
        Some(got) if got != expected => {
            Err(Refusal::OtherGeneration { deployment: name.to_owned(), expected, got }.into())
        }
        _ => Ok(()),
    }
}

/// A look for flows that are left.
enum Step {
    Drained(Drained),
    /// No colour is idle until the ramp has ended.
    Ramping,
}

/// Counts the flows that are left, waits for them, and ends them. No thread waits.
async fn drain(
    api: &Arc<Api>,
    name: &str,
    request: DrainRequest,
    caller: Caller,
    if_match: Option<u32>,
) -> Result<Value, Problem> {
    let is_wait = request.wait || request.timeout.is_some();
    let _place = match is_wait.then(|| api.waits.try_acquire()).transpose() {
        Ok(place) => place,
        Err(_) => return Err(Problem::busy("too many requests wait for flows to end: try again")),
    };
    let began = Instant::now();
    loop {
        let is_over = !is_wait || request.timeout.is_some_and(|timeout| began.elapsed() >= timeout);
        let step = DrainRequest { wait: false, timeout: None, reset: request.reset && is_over, ..request.clone() };
        let deployment = name.to_owned();
        let look = move |instance: &Instance| {
            check_generation(instance, &deployment, if_match)?;
            match instance.drain(&deployment, &step, |_| ()) {
                Err(Error::Refused(Refusal::NoIdleColour { .. })) if !is_over && is_ramping(instance, &deployment)? => {
                    Ok(Step::Ramping)
                }
                drained => drained.map(Step::Drained),
            }
        };
        let looked = match request.reset && is_over {
            true => api.controller.on_instance_for_long(caller.clone(), look).await,
            false => Some(api.controller.on_instance(Some(caller.clone()), look).await),
        };
        let looked = looked.ok_or_else(|| Problem::busy("too many changes that may last are being made: try again"))?;
        let looked = looked.map_err(|error| match if_match {
            Some(_) => Problem::from(&error).or_precondition(&error),
            None => Problem::from(&error),
        })?;
        if let Step::Drained(mut drained) = looked
            && (drained.left == 0 || is_over)
        {
            drained.waited = began.elapsed();
            let left = drained.left;
            return match json(drained) {
                json if left == 0 || !is_wait => Ok(json),
                json => {
                    let why = format!("{left} flows are left on the idle colour");
                    Err(Problem::new(StatusCode::GATEWAY_TIMEOUT, why)
                        .with("exit_code", 4.into())
                        .with("drained", json))
                }
            };
        }
        tokio::select! {
            () = sleep(PAUSE) => {}
            () = api.controller.stopped() => return Err(Problem::busy("the controller ends")),
        }
    }
}

fn is_ramping(instance: &Instance, deployment: &str) -> Result<bool, Error> {
    let status = instance.status(Some(deployment))?;
    Ok(status.deployments.iter().any(|deployment| deployment.phase == "ramping"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_may_stand_in_the_header_or_in_the_body() {
        let header = |value: &str| if_match(&[(header::IF_MATCH, value.parse().unwrap())].into_iter().collect());
        assert_eq!([header("\"7\""), header("7"), header("*")], [Ok(Some(7)), Ok(Some(7)), Ok(None)]);
        for value in ["\"7\", \"8\"", "W/\"7\"", "\"\"", "+7", "\"4294967296\"", "shop"] {
            assert!(header(value).is_err(), "{value}");
        }
        let two = ["1", "2"].map(|value| (header::IF_MATCH, value.parse().unwrap())).into_iter().collect();
        assert!(if_match(&two).is_err());
        assert_eq!(
            [agreed(None, Some(7)), agreed(Some(7), None), agreed(Some(7), Some(7))],
            [Ok(Some(7)), Ok(Some(7)), Ok(Some(7))]
        );
        assert!(agreed(Some(6), Some(7)).is_err());
    }
}
