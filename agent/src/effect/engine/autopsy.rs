//! Where the threads of an engine hang, read before it is killed for not moving.

use std::time::Duration;

use tokio::fs;
use tokio::time::timeout;

/// Threads looked at. A vLLM has a few hundred, most of them idle workers of a math library.
const THREADS_MAX: usize = 256;

/// Frames shown of one kernel stack.
const FRAMES_MAX: usize = 8;

/// A look at a process that hangs in a driver may hang too.
const WITHIN: Duration = Duration::from_secs(2);

/// One line a thread, `pid 12 thread 14 VLLM::Worker: state D, waits in nv_ioctl; stack …`: from `/proc/PID/task`.
/// Threads that only wait for work (in `futex_*`, `ep_poll` and the like) come last. What could be read within two
/// seconds is returned.
pub(super) async fn autopsy(pids: &[u32]) -> Vec<String> {
    let mut lines = Vec::new();
    let reading = async {
        for &pid in pids {
            let Ok(mut threads) = fs::read_dir(format!("/proc/{pid}/task")).await else { continue };
            while let Ok(Some(thread)) = threads.next_entry().await {
                if lines.len() == THREADS_MAX {
                    return;
                }
                if let Some(line) = look(pid, &thread.path()).await {
                    lines.push(line);
                }
            }
        }
    };
    if timeout(WITHIN, reading).await.is_err() {
        lines.push((false, format!("not all threads could be read within {} s", WITHIN.as_secs())));
    }
    lines.sort_by_key(|(is_waiting, _)| *is_waiting);
    lines.into_iter().map(|(_, line)| line).collect()
}

async fn look(pid: u32, thread: &std::path::Path) -> Option<(bool, String)> {
    let tid = thread.file_name()?.to_string_lossy().into_owned();
    let text = async |name: &str| fs::read_to_string(thread.join(name)).await.unwrap_or_default();
    let comm = text("comm").await;
    let stat = text("stat").await;
    let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()).unwrap_or('?');
    let wchan = text("wchan").await;
    let frames: Vec<String> = text("stack").await.lines().take(FRAMES_MAX).map(frame).collect();
    let mut line = format!("pid {pid} thread {tid} {}: state {state}", comm.trim());
    if !wchan.is_empty() && wchan != "0" {
        line.push_str(&format!(", waits in {wchan}"));
    }
    if !frames.is_empty() {
        line.push_str(&format!("; stack {}", frames.join(" < ")));
    }
    let is_waiting =
        state == 'S' && ["futex", "ep_poll", "poll_schedule", "do_wait"].iter().any(|w| wchan.starts_with(w));
    Some((is_waiting, line))
}

/// `[<0>] nv_ioctl+0x12/0x30 [nvidia]` to `nv_ioctl [nvidia]`.
fn frame(line: &str) -> String {
    let line = line.trim().trim_start_matches("[<0>]").trim();
    let (name, rest) = line.split_once('+').unwrap_or((line, ""));
    let module = rest.find('[').map_or("", |at| &rest[at..]);
    format!("{name} {module}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_thread_of_a_process_has_a_line_with_its_state() {
        let lines = autopsy(&[std::process::id()]).await;
        let own = std::fs::read_dir("/proc/self/task").unwrap().count();
        // Threads of the runtime come and go between the two looks.
        assert!(!lines.is_empty() && lines.len() <= own + 8, "{} of {own}", lines.len());
        assert!(lines.iter().all(|line| line.contains(": state ")), "{lines:?}");
        assert!(autopsy(&[0x3fff_fff0]).await.is_empty());
    }

    #[test]
    fn a_frame_is_its_function_and_module() {
        assert_eq!(frame("[<0>] nv_ioctl+0x12/0x30 [nvidia]"), "nv_ioctl [nvidia]");
        assert_eq!(frame("[<0>] futex_wait+0x1/0x2"), "futex_wait");
    }
}
