//! Which tests failed, and what they said first: what scrolls by an hour before a run ends is wanted at its end.

/// So much of what a failed test said.
const SAID_MAX: usize = 6;

/// What has been read of a run so far.
#[derive(Debug, Default)]
pub(super) struct Failures {
    failed: Vec<Failure>,
    /// The failure whose panic is being read.
    is_in_panic: bool,
}

#[derive(Debug)]
struct Failure {
    test: String,
    /// Where it panicked first, and the message.
    said: Vec<String>,
}

impl Failures {
    /// One line of nextest's.
    pub(super) fn read(&mut self, line: &str) {
        let line = line.trim();
        if let Some(test) = failed_test(line) {
            self.is_in_panic = false;
            // They are named once more at the end of a run.
            if !self.failed.iter().any(|failure| failure.test == test) {
                self.failed.push(Failure { test, said: Vec::new() });
            }
            return;
        }
        let Some(failure) = self.failed.last_mut() else { return };
        if line.contains(" panicked at ") && failure.said.is_empty() {
            self.is_in_panic = true;
        }
        let is_trace =
            ["stack backtrace:", "Stack backtrace:", "note:"].iter().any(|end| line.starts_with(end));
        self.is_in_panic &= !is_trace && failure.said.len() < SAID_MAX;
        if self.is_in_panic && !line.is_empty() {
            failure.said.push(line.to_owned());
        }
    }

    /// Each failed test with what it said, or nothing.
    pub(super) fn text(&self) -> String {
        let of_one = |failure: &Failure| {
            let said = failure.said.iter().map(|line| format!("    {line}\n"));
            format!("failed: {}\n{}", failure.test, said.collect::<String>())
        };
        self.failed.iter().map(of_one).collect()
    }
}

/// `FAIL [  33.652s] ( 880/1129) fleet-tests::detect a_test` names its binary and itself.
fn failed_test(line: &str) -> Option<String> {
    let (verdict, rest) = line.split_once(" [")?;
    let (_, name) = rest.split_once("s] ")?;
    // FAIL, LEAK-FAIL, TIMEOUT, ABORT, SIGSEGV and other signals.
    let is_failure = verdict.contains("FAIL")
        || verdict.starts_with("SIG")
        || ["TIMEOUT", "ABORT"].contains(&verdict.trim());
    let name = name.trim_start();
    let name =
        name.strip_prefix('(').and_then(|counted| counted.split_once(") ")).map_or(name, |(_, name)| name);
    is_failure.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_is_named_once_with_its_first_panic_and_no_trace() {
        let mut failures = Failures::default();
        let lines = "        PASS [   0.206s] ( 877/1129) fleet-tests::lease a_test
        FAIL [  33.652s] ( 880/1129) fleet-tests::detect a_stopped_agent_is_routed_out
  stderr ───
    thread 'a_stopped_agent_is_routed_out' (6) panicked at tests/detect/main.rs:48:5:
    SIGSTOP of an agent, 20 s: out 1.61 s, back -
    stack backtrace:
       0: __rustc::rust_begin_unwind
    thread 'a_stopped_agent_is_routed_out' (7) panicked at tests/process/apart.rs:53:33:
    passes in its namespaces
     TIMEOUT [ 600.001s] (1000/1129) cic-agent serve::hangs
      SIGBUS [   0.100s] (1001/1129) cic-agent serve::breaks
     Summary [ 900.0s] 3 tests run: 1 passed, 1 failed, 1 timed out, 0 skipped
        FAIL [  33.652s] ( 880/1129) fleet-tests::detect a_stopped_agent_is_routed_out";
        lines.lines().for_each(|line| failures.read(line));
        let wanted = "failed: fleet-tests::detect a_stopped_agent_is_routed_out
    thread 'a_stopped_agent_is_routed_out' (6) panicked at tests/detect/main.rs:48:5:
    SIGSTOP of an agent, 20 s: out 1.61 s, back -
failed: cic-agent serve::hangs
failed: cic-agent serve::breaks
";
        assert_eq!(failures.text(), wanted);
    }
}
