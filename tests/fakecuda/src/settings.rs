//! What the fake card is like, and what goes wrong on it.

use crate::abi::{Code, LAUNCH_FAILED};

/// A call that fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub call: String,
    /// Which of its calls, from 1.
    pub nth: u64,
    pub code: Code,
}

/// One card, or several alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `FAKECUDA_CARDS`: how many.
    pub cards: i32,
    /// `FAKECUDA_ARCH`: compute capability as in `sm_80`. 81 is one that no compiler knows, so that a program which
    /// compiles for the card it finds hands over PTX.
    pub arch: i32,
    /// `FAKECUDA_VERSION`: the CUDA that the driver is of, 13000 for 13.0. Calls that it did not have yet are findings.
    pub version: i32,
    /// `FAKECUDA_MEMORY`: bytes of device memory.
    pub memory: u64,
    /// `FAKECUDA_FAIL`: `cuMemAlloc_v2:3:2`, the third call of that name returns 2; several by commas.
    pub failures: Vec<Failure>,
    /// `FAKECUDA_SKIP`: names by commas, or `name:3` for its third call: they succeed and do nothing. So a right program
    /// becomes one that forgets a call.
    pub skips: Vec<(String, Option<u64>)>,
    /// `FAKECUDA_LOSE`: `12` or `12:46`; after so many kernels the card is lost: every call returns 719, or that.
    pub lose: Option<(u64, Code)>,
    /// `FAKECUDA_SCHEDULE`: which of ptxsim's schedules the first graph runs under.
    pub schedule: usize,
    /// `FAKECUDA_REPORT`: where to write, as JSON, what was called, when the process ends.
    pub report: Option<String>,
    /// Whether a finding ends the process; else it is kept for [`crate::findings`].
    pub fatal: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            cards: 1,
            arch: 81,
            version: 13_000,
            memory: 2 << 30,
            failures: Vec::new(),
            skips: Vec::new(),
            lose: None,
            schedule: 0,
            report: None,
            fatal: false,
        }
    }
}

impl Settings {
    /// From the environment; a setting that cannot be read is said.
    pub fn read() -> Result<Settings, String> {
        let base = Settings { fatal: true, ..Settings::default() };
        let lose = text("FAKECUDA_LOSE").map(|t| {
            let (count, code) = t.split_once(':').unwrap_or((&t, ""));
            let code = if code.is_empty() { Ok(LAUNCH_FAILED) } else { number("FAKECUDA_LOSE", code) };
            Ok::<_, String>((number("FAKECUDA_LOSE", count)?, code?))
        });
        let failures = text("FAKECUDA_FAIL").unwrap_or_default();
        let skips = text("FAKECUDA_SKIP").unwrap_or_default();
        Ok(Settings {
            cards: given("FAKECUDA_CARDS", base.cards)?,
            arch: given("FAKECUDA_ARCH", base.arch)?,
            version: given("FAKECUDA_VERSION", base.version)?,
            skips: skips.split(',').filter(|t| !t.is_empty()).map(skip).collect::<Result<_, _>>()?,
            memory: given("FAKECUDA_MEMORY", base.memory)?,
            schedule: given("FAKECUDA_SCHEDULE", base.schedule)?,
            failures: failures.split(',').filter(|t| !t.is_empty()).map(failure).collect::<Result<_, _>>()?,
            lose: lose.transpose()?,
            report: text("FAKECUDA_REPORT"),
            ..base
        })
    }
}

fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|t| !t.is_empty())
}

fn number<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{name}: '{text}' is no number"))
}

fn given<T: std::str::FromStr>(name: &str, otherwise: T) -> Result<T, String> {
    text(name).map_or(Ok(otherwise), |t| number(name, &t))
}

fn skip(text: &str) -> Result<(String, Option<u64>), String> {
    match text.split_once(':') {
        None => Ok((text.into(), None)),
        Some((name, nth)) => Ok((name.into(), Some(number("FAKECUDA_SKIP", nth)?))),
    }
}

fn failure(text: &str) -> Result<Failure, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let [call, nth, code] = parts[..] else {
        return Err(format!("FAKECUDA_FAIL: '{text}' is not name:number:code"));
    };
    Ok(Failure { call: call.into(), nth: number("FAKECUDA_FAIL", nth)?, code: number("FAKECUDA_FAIL", code)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read_or_refused() {
        let failed = Failure { call: "cuMemAlloc_v2".into(), nth: 3, code: 2 };
        assert_eq!(failure("cuMemAlloc_v2:3:2"), Ok(failed));
        assert_eq!(skip("cuInit"), Ok(("cuInit".into(), None)));
        assert_eq!(skip("cuInit:2"), Ok(("cuInit".into(), Some(2))));
        assert!(skip("cuInit:x").is_err());
        for wrong in ["cuInit", "cuInit:1", "cuInit:x:1", "cuInit:1:1:1"] {
            assert!(failure(wrong).is_err(), "{wrong}");
        }
    }
}
