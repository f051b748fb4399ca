//! Gates that ask Prometheus.
//!
//! The query is an instant one, at `/api/v1/query` (<https://prometheus.io/docs/prometheus/latest/querying/api/>). It passes if there is at least one
//! value, and each is within the bounds. A gate whose query finds nothing has not shown that all is well, so it fails, as it does with NaN,
//! which is what a rate of errors without requests is. `or vector(0)` in the query says otherwise where that is meant.

use serde_json::Value;

use super::http;
use crate::config::Bound;

/// The longest answer that is read.
const LONGEST: usize = 1 << 20;

/// Whether each value of a query is within bounds.
pub(super) async fn passes(url: &str, query: &str, max: Option<Bound>, min: Option<Bound>) -> Result<(), String> {
    let url = format!("{}/api/v1/query", url.trim_end_matches('/'));
    let mut response = http::send(http::client()?.get(url).query(&[("query", query)])).await?;
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(http::told)? {
        body.extend_from_slice(&piece);
        if body.len() > LONGEST {
            return Err(format!("the answer is longer than {LONGEST} bytes"));
        }
    }
    let answer: Value = serde_json::from_slice(&body)
        .map_err(|_| format!("it was answered with {}, and not with JSON as by Prometheus", response.status()))?;
    judge(&answer, max, min)
}

fn judge(answer: &Value, max: Option<Bound>, min: Option<Bound>) -> Result<(), String> {
    if answer["status"] != "success" {
        let why = answer["error"].as_str().unwrap_or("it does not say why");
        return Err(format!("the query was refused: {why}"));
    }
    let (kind, result) = (&answer["data"]["resultType"], &answer["data"]["result"]);
    let values = match kind.as_str() {
        Some("scalar") => vec![(String::new(), result)],
        Some("vector") => {
            let series = result.as_array().map(Vec::as_slice).unwrap_or_default();
            series.iter().map(|series| (labels(&series["metric"]), &series["value"])).collect()
        }
        _ => return Err(format!("the query gives a {kind}, expected an instant vector or a scalar")),
    };
    if values.is_empty() {
        return Err("the query gives no value".to_owned());
    }
    values.iter().try_for_each(|(labels, value)| within(labels, value, max, min))
}

fn within(labels: &str, value: &Value, max: Option<Bound>, min: Option<Bound>) -> Result<(), String> {
    let text = value[1].as_str().unwrap_or("not a number");
    let number = text.parse::<f64>().ok().filter(|number| !number.is_nan());
    let Some(number) = number else { return Err(format!("the value{labels} is {text}")) };
    match (max, min) {
        (Some(max), _) if number > max.number() => Err(format!("the value{labels} is {text}, more than {max}")),
        (_, Some(min)) if number < min.number() => Err(format!("the value{labels} is {text}, less than {min}")),
        _ => Ok(()),
    }
}

/// The labels of a series, after a space; nothing if it has none.
fn labels(metric: &Value) -> String {
    match metric.as_object() {
        Some(labels) if !labels.is_empty() => {
            let labels = labels.iter().map(|(name, value)| format!("{name}={value}"));
            format!(" of {{{}}}", labels.collect::<Vec<_>>().join(", "))
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(kind: &str, result: Value, max: Option<f64>, min: Option<f64>) -> Result<(), String> {
        let answer = json!({ "status": "success", "data": { "resultType": kind, "result": result } });
        judge(&answer, max.and_then(Bound::new), min.and_then(Bound::new))
    }

    fn vector(values: &[&str]) -> Value {
        let series =
            |(nth, value): (usize, &&str)| json!({ "metric": { "nth": nth.to_string() }, "value": [1.5, value] });
        values.iter().enumerate().map(series).collect()
    }

    #[test]
    fn each_value_is_within_both_bounds() {
        assert_eq!(judged("vector", vector(&["0.5", "1"]), Some(1.0), Some(0.5)), Ok(()));
        assert_eq!(judged("scalar", json!([1.5, "1"]), Some(1.0), None), Ok(()));
        let failed = |values: &[&str], max, min| judged("vector", vector(values), max, min).unwrap_err();
        assert_eq!(failed(&["0.5", "1.1"], Some(1.0), None), "the value of {nth=\"1\"} is 1.1, more than 1");
        assert_eq!(failed(&["0.4", "1"], Some(1.0), Some(0.5)), "the value of {nth=\"0\"} is 0.4, less than 0.5");
        assert_eq!(failed(&["+Inf"], Some(1.0), None), "the value of {nth=\"0\"} is +Inf, more than 1");
        assert_eq!(judged("vector", vector(&["+Inf"]), None, Some(1.0)), Ok(()));
    }

    #[test]
    fn what_shows_nothing_does_not_pass() {
        assert_eq!(judged("vector", json!([]), Some(1.0), None).unwrap_err(), "the query gives no value");
        assert_eq!(
            judged("vector", vector(&["0", "NaN"]), Some(1.0), None).unwrap_err(),
            "the value of {nth=\"1\"} is NaN"
        );
        let histogram = json!([{ "metric": {}, "histogram": [1.5, {}] }]);
        assert_eq!(judged("vector", histogram, Some(1.0), None).unwrap_err(), "the value is not a number");
        assert!(judged("matrix", json!([]), Some(1.0), None).unwrap_err().contains("gives a \"matrix\""));
        let refused = json!({ "status": "error", "errorType": "bad_data", "error": "parse error" });
        assert_eq!(judge(&refused, Bound::new(1.0), None).unwrap_err(), "the query was refused: parse error");
        assert!(judge(&json!({}), Bound::new(1.0), None).is_err());
    }
}
