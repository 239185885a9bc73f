//! Whether the operator is well, for whoever looks after its process: told by a Unix socket, and asked for by the same program.
//!
//! Not by HTTP: two operators may be on one node and on its network, where each port is there once, and another's answer would be
//! taken for this one's. Nor does a port more stand open anywhere.

use crate::watch::Shared;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::time::{Instant, timeout};

/// How long a leader may be without beginning another look at the cluster. It begins one a minute though nothing happens, and no request
/// of one takes longer than half a minute.
const STUCK: Duration = Duration::from_secs(300);
/// How long whoever asks may take to listen, and the operator to answer.
const PATIENCE: Duration = Duration::from_secs(4);

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Question {
    /// Whether its loop turns: if not, it is to be started anew.
    Live,
    /// Whether it has seen all that it decides from, whether it leads or stands by, and whether a leader was given what it can work with.
    Ready,
}

/// When a leader began to look last; None: it does not lead.
#[derive(Debug, Default)]
pub struct Pulse(Mutex<Option<Instant>>);

impl Pulse {
    /// A leader begins to look.
    pub fn beat(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn stuck_for(&self) -> Option<Duration> {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map(|last| last.elapsed()).filter(|since| *since >= STUCK)
    }
}

/// What a leader cannot do, and nobody but a user can mend; None: nothing.
#[derive(Debug, Default)]
pub struct Obstacle(Mutex<Option<String>>);

impl Obstacle {
    /// There is this, or nothing any more.
    pub fn set(&self, obstacle: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = obstacle;
    }

    /// What there is, in one line.
    fn words(&self) -> Option<String> {
        let obstacle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = obstacle.as_ref()?.lines().map(str::trim);
        Some(lines.collect::<Vec<_>>().join(" "))
    }
}

/// Answers for ever. One at a time: whoever asks says nothing and gets two lines.
///
/// # Errors
/// When the socket cannot be made.
pub async fn serve(socket: &Path, shared: &Shared) -> io::Result<()> {
    // What a predecessor in the same pod has left.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(socket)?;
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => {
                let answer = answer(shared);
                // Whoever does not listen is told nothing.
                let _ = timeout(PATIENCE, stream.write_all(answer.as_bytes())).await;
            }
            // Out of file descriptors, for instance.
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

fn answer(shared: &Shared) -> String {
    let live = match shared.pulse.stuck_for() {
        None => "ok".to_owned(),
        Some(since) => format!(
            "it leads, and has not looked at the cluster for {} s",
            since.as_secs()
        ),
    };
    let unseen = shared.world().unseen();
    let ready = match unseen.as_slice() {
        [] => shared.obstacle.words().unwrap_or_else(|| "ok".to_owned()),
        unseen => format!("not all of these have been seen yet: {}", unseen.join(", ")),
    };
    format!("live: {live}\nready: {ready}\n")
}

/// Asks the operator that answers at a socket.
///
/// # Errors
/// It is not, and why; or it does not answer.
pub fn ask(socket: &Path, question: Question) -> Result<(), String> {
    let silent = |error: io::Error| format!("no answer at {}: {error}", socket.display());
    let mut stream = std::os::unix::net::UnixStream::connect(socket).map_err(silent)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(silent)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(silent)?;
    let asked = match question {
        Question::Live => "live: ",
        Question::Ready => "ready: ",
    };
    match answer.lines().find_map(|line| line.strip_prefix(asked)) {
        Some("ok") => Ok(()),
        Some(why) => Err(why.to_owned()),
        None => Err(format!("no answer at {}", socket.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Kind;

    #[tokio::test(start_paused = true)]
    async fn it_is_live_while_its_loop_turns_and_ready_once_it_has_seen_everything() {
        let shared = Shared::default();
        assert_eq!(
            answer(&shared),
            "live: ok\nready: not all of these have been seen yet: Node, RoutingPolicy, RoutingNode, PeerSlice\n"
        );
        for kind in Kind::ALL {
            shared.world().is_listed(kind);
        }
        assert_eq!(answer(&shared), "live: ok\nready: ok\n", "it stands by");
        shared
            .obstacle
            .set(Some("the first policy is refused:\n  422".to_owned()));
        assert_eq!(
            answer(&shared),
            "live: ok\nready: the first policy is refused: 422\n"
        );
        shared.obstacle.set(None);
        assert_eq!(answer(&shared), "live: ok\nready: ok\n");
        shared.pulse.beat();
        tokio::time::advance(STUCK - Duration::from_secs(1)).await;
        assert!(answer(&shared).starts_with("live: ok\n"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(answer(&shared).starts_with("live: it leads, and has not looked at the cluster for 300 s\n"));
        shared.pulse.beat();
        assert!(answer(&shared).starts_with("live: ok\n"));
    }

    #[tokio::test]
    async fn who_asks_is_told() {
        let socket = std::env::temp_dir().join(format!("podlane-health-{}", std::process::id()));
        let why = ask(&socket, Question::Live).expect_err("nobody is there");
        assert!(why.starts_with("no answer at "), "{why}");
        let shared = std::sync::Arc::new(Shared::default());
        // What a predecessor left is no hindrance.
        std::fs::write(&socket, "").expect("a file");
        let (place, served) = (socket.clone(), std::sync::Arc::clone(&shared));
        tokio::spawn(async move { serve(&place, &served).await });
        let asked = |question| {
            let socket = socket.clone();
            tokio::task::spawn_blocking(move || ask(&socket, question))
        };
        while asked(Question::Live).await.expect("no panic").is_err() {
            tokio::task::yield_now().await;
        }
        let why = asked(Question::Ready)
            .await
            .expect("no panic")
            .expect_err("nothing is seen yet");
        assert!(why.contains("PeerSlice"), "{why}");
        std::fs::remove_file(&socket).expect("it is there");
    }
}
