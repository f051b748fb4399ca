//! `bgctl history`: print the journal.

use bg_userspace::{
    Error, Instance,
    history::{History, Journal, Moment, PATIENCE, Record},
};

use crate::{
    args::{Global, History as Args},
    exit::Outcome,
    output,
    table::{Align::Left, Table},
};

pub(super) fn run(global: &Global, args: &Args) -> anyhow::Result<Outcome> {
    if args.verify {
        return verify(global);
    }
    let mut journal = read(global, args.only.deployment.as_deref())?;
    if journal.damaged_lines > 0 {
        output::message(&format!(
            "{} of {} could not be read and {} left out (a crash can leave a line incomplete)",
            if journal.damaged_lines == 1 { "1 line".to_owned() } else { format!("{} lines", journal.damaged_lines) },
            global.state_dir.join(History::FILE).display(),
            if journal.damaged_lines == 1 { "is" } else { "are" },
        ));
    }
    if let Some(name) = &args.only.deployment
        && journal.records.is_empty()
    {
        refuse_unknown(global, name)?;
    }
    // Clocks are sometimes set back. The time in a record counts, not its position.
    journal.records.retain(|record| args.since.is_none_or(|since| record.time >= since));
    let is_limited = args.since.is_some() || args.last.is_some();
    let older = args.last.map_or(0, |last| journal.records.len().saturating_sub(last));
    journal.records.drain(..older);
    if global.json {
        output::print_json(&serde_json::json!({ "records": journal.records }))?;
        return Ok(Outcome::Done);
    }
    let mut table = Table::new(["TIME", "DEPLOYMENT", "ACTION", "FROM", "TO", "WHO", "WHY"].map(|head| (head, Left)));
    for Record { time, deployment, interfaces, action, from, to, who, reason, .. } in journal.records {
        // A change of interfaces concerns no deployment.
        let deployment = if deployment.is_empty() { format!("({})", interfaces.join(", ")) } else { deployment };
        table.row([
            // In seconds, in UTC, in the format of RFC 3339.
            time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into(),
            deployment.into(),
            action.name().into(),
            moment(from).into(),
            moment(to).into(),
            who.to_string().into(),
            reason.unwrap_or_default().replace(char::is_control, " ").into(),
        ]);
    }
    if table.is_empty() {
        let such = if is_limited { " that matches" } else { "" };
        output::message(&format!("nothing{such} has been recorded in {}", global.state_dir.display()));
    } else {
        output::print_styled(&table.render(""))?;
    }
    Ok(Outcome::Done)
}

fn verify(global: &Global) -> anyhow::Result<Outcome> {
    let verified = History::of(&global.paths()).verify_within(PATIENCE)?;
    let is_whole = verified.is_whole;
    if global.json {
        output::print_json(&verified)?;
    } else {
        let lines = verified.sentences(&global.state_dir.join(History::FILE));
        output::print(&lines.into_iter().map(|line| line + "\n").collect::<String>())?;
    }
    Ok(if is_whole { Outcome::Done } else { Outcome::Failed })
}

fn read(global: &Global, deployment: Option<&str>) -> Result<Journal, Error> {
    History::new(&global.state_dir).read_within(deployment, PATIENCE)
}

/// Refuses the name of a deployment that neither runs nor is in the history.
fn refuse_unknown(global: &Global, name: &str) -> anyhow::Result<()> {
    if Instance::open(&global.paths()).and_then(|instance| instance.status(Some(name))).is_ok() {
        return Ok(());
    }
    let records = read(global, None)?.records.into_iter();
    let existing = records.map(|record| record.deployment).filter(|name| !name.is_empty());
    Err(Error::UnknownDeployment { name: name.to_owned(), existing: existing.collect() }.into())
}

fn moment(moment: Option<Moment>) -> String {
    moment.map_or("-".to_owned(), |Moment { generation, live }| format!("{}@{generation}", live.name()))
}
