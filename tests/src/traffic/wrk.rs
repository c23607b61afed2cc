//! What wrk, the load generator of the bench of systems, prints.

use anyhow::{Context, Result, bail};

/// A run of wrk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    pub requests_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

/// Reads what `wrk --latency` prints.
///
/// # Errors
/// If a figure is missing, or answers were errors.
pub fn parse(text: &str) -> Result<Measured> {
    let field = |name: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(name));
        line.map(str::trim).with_context(|| format!("there is no `{name}`"))
    };
    if let Ok(errors) = field("Non-2xx or 3xx responses:") {
        bail!("{errors} answers were errors");
    }
    Ok(Measured {
        requests_per_second: field("Requests/sec:")?.parse()?,
        p50_us: microseconds(field("50%")?)?,
        p99_us: microseconds(field("99%")?)?,
    })
}

fn microseconds(text: &str) -> Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("`{text}` is no time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "  Latency Distribution\n     50%    1.21ms\n     99%  850.00us\nRequests/sec:  49612.33\nTransfer/sec:      7.71MB\n";
        let measured = Measured { requests_per_second: 49612.33, p50_us: 1210.0, p99_us: 850.0 };
        assert_eq!(parse(text).expect("parsed"), measured);
        parse("Non-2xx or 3xx responses: 7\n").expect_err("errors are told");
    }
}
