//! An API server as far as one agent can tell: lists, watches and takes status, all from memory.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

/// What the server holds.
pub(crate) struct Objects {
    pub(crate) node: Value,
    pub(crate) slices: Vec<Value>,
}

/// The server.
pub(crate) struct ApiServer {
    pub(crate) address: String,
    objects: Arc<Mutex<Objects>>,
    /// Statuses as they are written.
    pub(crate) statuses: Receiver<Value>,
    watchers: Arc<Mutex<Vec<(&'static str, TcpStream)>>>,
}

impl ApiServer {
    /// Serves in the calling thread's network namespace.
    pub(crate) fn serve(objects: Objects) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let objects = Arc::new(Mutex::new(objects));
        let watchers = Arc::new(Mutex::new(Vec::new()));
        let (told, statuses) = channel();
        {
            let (objects, watchers) = (Arc::clone(&objects), Arc::clone(&watchers));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (objects, watchers, told) =
                        (Arc::clone(&objects), Arc::clone(&watchers), told.clone());
                    std::thread::spawn(move || connection(stream, &objects, &watchers, &told));
                }
            });
        }
        Self {
            address,
            objects,
            statuses,
            watchers,
        }
    }

    /// Changes a slice, and tells those who watch.
    pub(crate) fn change_slice(&self, number: usize, change: impl FnOnce(&mut Value)) {
        let mut objects = self.objects.lock().expect("nobody panicked");
        change(&mut objects.slices[number]);
        let event = json!({"type": "MODIFIED", "object": objects.slices[number]}).to_string() + "\n";
        for (_, stream) in self
            .watchers
            .lock()
            .expect("nobody panicked")
            .iter_mut()
            .filter(|(kind, _)| *kind == "peerslices")
        {
            // One that is gone is nobody's loss.
            let _ = chunk(stream, &event);
        }
    }
}

fn chunk(stream: &mut TcpStream, text: &str) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n{text}\r\n", text.len())?;
    stream.flush()
}

fn answer(stream: &mut TcpStream, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

fn connection(
    stream: TcpStream,
    objects: &Mutex<Objects>,
    watchers: &Mutex<Vec<(&'static str, TcpStream)>>,
    told: &Sender<Value>,
) {
    let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
    let mut writer = stream;
    while let Some((line, body)) = request(&mut reader) {
        let kind = if line.contains("/peerslices") {
            "peerslices"
        } else {
            "routingnodes"
        };
        if line.contains("watch=true") {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
            if writer.write_all(head.as_bytes()).is_ok() {
                watchers.lock().expect("nobody panicked").push((kind, writer));
            }
            // The connection is the watch's until the agent ends.
            let _ = reader.read(&mut [0]);
            return;
        }
        let answered = {
            let mut objects = objects.lock().expect("nobody panicked");
            if line.starts_with("PATCH") {
                let patch: Value = serde_json::from_slice(&body).expect("JSON");
                objects.node["status"] = patch["status"].clone();
                let _ = told.send(patch["status"].clone());
                answer(&mut writer, &objects.node)
            } else {
                answer(&mut writer, &list(kind, &line, &objects))
            }
        };
        if answered.is_err() {
            return;
        }
    }
}

fn list(kind: &str, line: &str, objects: &Objects) -> Value {
    let number = |name: &str| {
        let (_, rest) = line.split_once(&format!("{name}="))?;
        rest.split(['&', ' ']).next()?.parse::<usize>().ok()
    };
    let (items, next) = if kind == "peerslices" {
        let start = number("continue").unwrap_or(0);
        let end = (start + number("limit").unwrap_or(500)).min(objects.slices.len());
        let next = if end < objects.slices.len() {
            end.to_string()
        } else {
            String::new()
        };
        (objects.slices[start..end].to_vec(), next)
    } else {
        (vec![objects.node.clone()], String::new())
    };
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1", "continue": next}, "items": items})
}

/// A request's first line and its body.
fn request(reader: &mut BufReader<TcpStream>) -> Option<(String, Vec<u8>)> {
    let mut first = String::new();
    if reader.read_line(&mut first).ok()? == 0 {
        return None;
    }
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, body))
}
