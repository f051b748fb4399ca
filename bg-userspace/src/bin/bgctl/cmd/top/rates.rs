//! How many flows were opened in each of the last seconds, by deployment and colour.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use bg_userspace::{Colour, DeploymentStatus, Status};

/// How many seconds are kept: more than a terminal has columns.
const SECONDS: usize = 400;

/// The flows per second of one deployment.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    /// Tenths of flows per second, the newest last, blue and green.
    tenths: [VecDeque<u64>; 2],
}

impl Series {
    /// The newest `count` values of a colour. If there are fewer, those before are zero.
    pub(super) fn newest(&self, colour: Colour, count: usize) -> Vec<u64> {
        let values = &self.tenths[colour as usize];
        let known = values.iter().skip(values.len().saturating_sub(count)).copied();
        std::iter::repeat_n(0, count.saturating_sub(values.len())).chain(known).collect()
    }

    /// Flows per second of a colour in the last interval.
    pub(super) fn now(&self, colour: Colour) -> f64 {
        self.tenths[colour as usize].back().map_or(0.0, |tenths| *tenths as f64 / 10.0)
    }

    fn add(&mut self, rates: [f64; 2], seconds: usize) {
        for (values, rate) in self.tenths.iter_mut().zip(rates) {
            values.extend(std::iter::repeat_n((rate * 10.0).round() as u64, seconds.min(SECONDS)));
            let old = values.len().saturating_sub(SECONDS);
            values.drain(..old);
        }
    }
}

/// The flows per second of all deployments.
#[derive(Debug, Default)]
pub(super) struct Rates {
    series: HashMap<String, Series>,
    last: Option<(Instant, HashMap<String, [u64; 2]>)>,
}

impl Rates {
    /// Takes the counters of a status. If the instance is new, they are not compared with those before.
    pub(super) fn take(&mut self, at: Instant, status: &Status, is_new: bool) {
        let totals: HashMap<_, _> =
            status.deployments.iter().map(|deployment| (deployment.name.clone(), opened(deployment))).collect();
        self.series.retain(|name, _| totals.contains_key(name));
        if let Some((before, past)) = self.last.as_ref().filter(|_| !is_new) {
            let elapsed = at.duration_since(*before).as_secs_f64();
            // A look that was asked for between two others adds no second of its own.
            if elapsed < 0.5 {
                return;
            }
            for (name, now) in &totals {
                // The counters of a service that is removed go with it.
                let rate =
                    |nth: usize| past.get(name).map_or(0, |past| now[nth].saturating_sub(past[nth])) as f64 / elapsed;
                self.series.entry(name.clone()).or_default().add([rate(0), rate(1)], elapsed.round().max(1.0) as usize);
            }
        }
        self.last = Some((at, totals));
    }

    /// The series of a deployment.
    pub(super) fn of(&self, deployment: &str) -> Series {
        self.series.get(deployment).cloned().unwrap_or_default()
    }
}

/// How many flows all services of a deployment have opened, blue and green.
fn opened(deployment: &DeploymentStatus) -> [u64; 2] {
    Colour::ALL.map(|colour| deployment.services.iter().map(|service| service.colours.of(colour).flows_opened).sum())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_by_the_time_between_looks_and_begin_at_zero() {
        let start = Instant::now();
        let mut rates = Rates::default();
        for (seconds, blue, green) in [(0.0, 1000, 0), (1.0, 1010, 0), (1.2, 9999, 0), (3.0, 1050, 2)] {
            let status = super::super::model::tests::status_with("shop", [blue, green]);
            rates.take(start + Duration::from_secs_f64(seconds), &status, false);
        }
        let series = rates.of("shop");
        assert_eq!(series.newest(Colour::Blue, 5), [0, 0, 100, 200, 200]);
        assert_eq!(series.newest(Colour::Green, 2), [10, 10]);
        assert_eq!((series.now(Colour::Blue), series.now(Colour::Green)), (20.0, 1.0));
        assert_eq!(rates.of("mail").newest(Colour::Blue, 2), [0, 0]);
    }

    #[test]
    fn counters_that_began_anew_are_no_flows() {
        let start = Instant::now();
        let mut rates = Rates::default();
        for (seconds, blue, is_new) in [(0, 0, false), (1, 500, true), (2, 400, false), (3, 410, false)] {
            let status = super::super::model::tests::status_with("shop", [blue, 0]);
            rates.take(start + Duration::from_secs(seconds), &status, is_new);
        }
        assert_eq!(rates.of("shop").newest(Colour::Blue, 3), [0, 0, 100]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut series = Series::default();
        (0..3).for_each(|_| series.add([1.0, 2.0], 100_000));
        assert_eq!(series.tenths[0].len(), SECONDS);
    }
}
