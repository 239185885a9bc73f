//! Namespaces that go with the thread that made them.

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::any::Any;
use std::path::PathBuf;

/// Runs something on a thread of its own, in a fresh network namespace. The namespace goes when the thread, and all that still holds it,
/// has ended.
///
/// # Errors
/// When no namespace can be made (that is for root); or the text with which the work panicked.
pub fn in_fresh(work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    attempted(|| {
        work();
        Ok(())
    })
}

/// The same with work that can fail without panicking.
pub(crate) fn attempted(work: impl FnOnce() -> Result<(), String> + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| format!("no network namespace can be made ({errno}); run them as root"))?;
        work()
    });
    thread.join().unwrap_or_else(|panic| Err(text(&*panic)))
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let owned = panic.downcast_ref::<String>().cloned();
    owned
        .or_else(|| panic.downcast_ref().map(|text: &&str| (*text).to_owned()))
        .unwrap_or_else(|| "it panicked without words".to_owned())
}

/// Where [`own_bpffs`] mounts.
#[must_use]
pub fn bpffs() -> PathBuf {
    PathBuf::from("/sys/fs/bpf")
}

/// Gives the calling thread a mount namespace of its own, with an empty BPF file system at [`bpffs`] and a /sys of the thread's network
/// namespace. Both go with the thread.
///
/// # Errors
/// When the one cannot be made or the other not be mounted (that is for root).
pub fn own_bpffs() -> Result<(), String> {
    unshare(CloneFlags::CLONE_NEWNS)
        .map_err(|errno| format!("no mount namespace can be made ({errno}); run them as root"))?;
    // What is mounted from here on is nobody else's.
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
        .and_then(|()| mounted("sysfs", "/sys".into()))
        .and_then(|()| mounted("bpf", bpffs()))
        .map_err(|errno| format!("no BPF file system can be mounted ({errno}); run them as root"))
}

fn mounted(kind: &str, at: PathBuf) -> nix::Result<()> {
    mount(Some(kind), &at, Some(kind), MsFlags::empty(), None::<&str>)
}

#[cfg(test)]
mod tests {
    use super::in_fresh;

    #[test]
    fn what_a_panic_said_is_the_error() {
        // Without root the first answer is another, which is an error all the same.
        let possible = in_fresh(|| ()).is_ok();
        let number = 7;
        let said = [
            in_fresh(|| panic!("in one piece")),
            in_fresh(move || panic!("made of {number} pieces")),
            in_fresh(move || std::panic::panic_any(number)),
        ];
        let words = ["in one piece", "made of 7 pieces", "it panicked without words"];
        for (said, words) in said.into_iter().zip(words) {
            let said = said.expect_err("it panicked");
            assert!(said == words || !possible, "{said}");
        }
    }
}
