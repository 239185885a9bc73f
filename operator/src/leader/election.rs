//! Taking the lease, keeping it and giving it up.

use super::{Candidate, Step, Terms};
use crate::failure::words;
use crate::said::Said;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::{Client, Error, ResourceExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Leadership was lost: whoever did must not act any more.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else has the lease.
    #[error("{0} has taken the lease")]
    Taken(String),
    /// The lease could not be renewed in time.
    #[error("the lease could not be renewed in time: {0}")]
    NotRenewed(String),
}

/// Taking part in the election.
pub struct Election {
    api: Api<Lease>,
    name: String,
    terms: Terms,
    candidate: Candidate,
    held: Option<Lease>,
    said: Said,
}

impl Election {
    /// Takes part, for the lease with this name, as `identity`.
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, terms: Terms) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            name: name.to_owned(),
            terms,
            candidate: Candidate::new(identity.to_owned(), terms),
            held: None,
            said: Said::default(),
        }
    }

    /// Waits until the lease is this one's. Says when it was taken: it counts from then.
    pub async fn acquire(&mut self) -> Instant {
        loop {
            match timeout(self.terms.lease, self.attempt()).await {
                Ok(Ok(Some(taken))) => return taken,
                Ok(Ok(None)) => {
                    let holder = self.candidate.holder().unwrap_or("nobody").to_owned();
                    if self.said.is_news("lease", &holder, std::time::Instant::now()) {
                        tracing::info!(lease = self.name, holder, "standing by: another operator leads");
                    }
                }
                Ok(Err(error)) => self.say(&words(&error)),
                Err(_) => self.say("no answer"),
            }
            // client-go: the retry period, and up to 1.2 times as much again.
            sleep(self.terms.retry.mul_f64(1.0 + 1.2 * rand::random::<f64>())).await;
        }
    }

    /// Keeps the lease, until it is lost. As in client-go a renewal may take as long as [`Terms::renew`], with any number of
    /// attempts; other than there it also ends before anybody else may take the lease, however slow the API server is.
    pub async fn keep(&mut self, acquired: Instant) -> Lost {
        let mut renewed = acquired;
        let mut why = "no answer".to_owned();
        loop {
            sleep(self.terms.retry).await;
            let last_moment = renewed + self.terms.lease - self.terms.retry;
            let deadline = last_moment.min(Instant::now() + self.terms.renew);
            renewed = loop {
                match timeout_at(deadline, self.attempt()).await {
                    Ok(Ok(Some(renewed))) => break renewed,
                    Ok(Ok(None)) => {
                        return Lost::Taken(self.candidate.holder().unwrap_or("nobody").to_owned());
                    }
                    Ok(Err(error)) => {
                        why = words(&error);
                        self.say(&why.clone());
                    }
                    Err(_) => return Lost::NotRenewed(why),
                }
                if timeout_at(deadline, sleep(self.terms.retry)).await.is_err() {
                    return Lost::NotRenewed(why);
                }
            };
            self.said.is_over("lease");
        }
    }

    /// Gives the lease up, if it is held.
    pub async fn release(&mut self) {
        if !self.candidate.holds() {
            return;
        }
        match timeout(self.terms.retry, self.give_up()).await {
            Ok(Ok(())) => tracing::info!(lease = self.name, "gave the lease up"),
            Ok(Err(error)) => {
                tracing::warn!(
                    lease = self.name,
                    error = words(&error),
                    "could not give the lease up"
                );
            }
            Err(_) => tracing::warn!(lease = self.name, "could not give the lease up: no answer"),
        }
    }

    async fn give_up(&mut self) -> Result<(), Error> {
        loop {
            let held = match self.held.take() {
                Some(held) => held,
                // A renewal was under way: what came of it is not known.
                None => self.api.get(&self.name).await?,
            };
            self.candidate.observe(&held, Instant::now());
            if !self.candidate.holds() {
                return Ok(());
            }
            let released = self.candidate.release(&held, Timestamp::now());
            match self
                .api
                .replace(&self.name, &PostParams::default(), &released)
                .await
            {
                Err(Error::Api(status)) if status.code == 409 => {}
                other => return other.map(|_| ()),
            }
        }
    }

    /// One attempt to take or renew the lease. Whoever holds it does not look first: that halves what a slow API server costs.
    /// Says when that was, if it succeeded.
    async fn attempt(&mut self) -> Result<Option<Instant>, Error> {
        if let Some(held) = self.held.take().filter(|_| self.candidate.holds()) {
            let step = self.candidate.step(Some(&held), Instant::now(), Timestamp::now());
            match self.write(step).await {
                Err(Error::Api(status)) if status.code == 409 || status.code == 404 => {}
                // Where that failed, whether it was written is not known: the next attempt looks.
                other => return other,
            }
        }
        let lease = self.api.get_opt(&self.name).await?;
        let step = self
            .candidate
            .step(lease.as_ref(), Instant::now(), Timestamp::now());
        match self.write(step).await {
            // Somebody else was quicker.
            Err(Error::Api(status)) if status.code == 409 => {
                if let Some(lease) = self.api.get_opt(&self.name).await? {
                    self.candidate.observe(&lease, Instant::now());
                }
                Ok(None)
            }
            other => other,
        }
    }

    async fn write(&mut self, step: Step) -> Result<Option<Instant>, Error> {
        let start = Instant::now();
        let written = match step {
            Step::Wait => return Ok(None),
            Step::Create(mut lease) => {
                lease.metadata.name = Some(self.name.clone());
                self.api.create(&PostParams::default(), &lease).await?
            }
            Step::Replace(lease) => {
                self.api
                    .replace(&self.name, &PostParams::default(), &lease)
                    .await?
            }
        };
        self.candidate.observe(&written, Instant::now());
        tracing::trace!(lease = written.name_any(), "renewed");
        self.held = Some(written);
        Ok(Some(start))
    }

    fn say(&mut self, why: &str) {
        if self.said.is_news("lease", why, std::time::Instant::now()) {
            tracing::warn!(
                lease = self.name,
                why,
                "cannot take or renew the lease; trying again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{Method, Request, Response, StatusCode};
    use kube::client::Body;
    use serde_json::{Value, json};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;
    use tower_test::mock;

    /// What the API server has, and how it answers.
    #[derive(Default)]
    struct Server {
        lease: Option<Value>,
        version: u64,
        refuses: Option<u16>,
        is_mute: bool,
        takes: Duration,
    }

    fn election(server: &Arc<Mutex<Server>>, identity: &str) -> Election {
        let (service, mut handle) = mock::pair::<Request<Body>, Response<Body>>();
        let server = Arc::clone(server);
        tokio::spawn(async move {
            while let Some((request, send)) = handle.next_request().await {
                let method = request.method().clone();
                let body = request.into_body().collect_bytes().await.expect("a body");
                let takes = server.lock().expect("unpoisoned").takes;
                sleep(takes).await;
                let mut server = server.lock().expect("unpoisoned");
                if server.is_mute {
                    std::mem::forget(send);
                    continue;
                }
                let (code, answer) = server.answer(&method, &body);
                let response = Response::builder()
                    .status(code)
                    .body(Body::from(answer.to_string().into_bytes()));
                send.send_response(response.expect("a response"));
            }
        });
        Election::new(
            Client::new(service, "default"),
            "podlane-system",
            "lease",
            identity,
            Terms::default(),
        )
    }

    impl Server {
        fn answer(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
            let failure = |code: u16| {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
                    "reason": if code == 404 { "NotFound" } else { "Conflict" }});
                (StatusCode::from_u16(code).expect("a code"), status)
            };
            if let Some(code) = self.refuses {
                return failure(code);
            }
            match (method, &self.lease) {
                (&Method::GET, Some(lease)) => (StatusCode::OK, lease.clone()),
                (&Method::GET, None) => failure(404),
                (_, known) => {
                    let mut lease: Value = serde_json::from_slice(body).expect("JSON");
                    let expected = known
                        .as_ref()
                        .map_or(&Value::Null, |known| &known["metadata"]["resourceVersion"]);
                    if lease["metadata"]["resourceVersion"] != *expected {
                        return failure(409);
                    }
                    self.version += 1;
                    lease["metadata"]["resourceVersion"] = self.version.to_string().into();
                    self.lease = Some(lease.clone());
                    (StatusCode::OK, lease)
                }
            }
        }
    }

    fn holder(server: &Arc<Mutex<Server>>) -> String {
        let server = server.lock().expect("unpoisoned");
        let lease = server.lease.as_ref().expect("a lease");
        lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_starts_at_once_when_the_first_gives_the_lease_up() {
        let server = Arc::new(Mutex::new(Server::default()));
        let (mut first, mut second) = (election(&server, "first"), election(&server, "second"));
        let acquired = first.acquire().await;
        assert_eq!(holder(&server), "first");
        assert!(
            timeout(Duration::from_secs(60), async {
                tokio::join!(second.acquire(), first.keep(acquired))
            })
            .await
            .is_err()
        );
        assert_eq!(holder(&server), "first");
        first.release().await;
        assert_eq!(holder(&server), "");
        timeout(Duration::from_secs(5), second.acquire())
            .await
            .expect("free");
        assert_eq!(holder(&server), "second");
    }

    #[tokio::test(start_paused = true)]
    async fn the_second_starts_when_the_first_has_been_silent_for_the_length_of_a_lease() {
        let server = Arc::new(Mutex::new(Server::default()));
        let (mut first, mut second) = (election(&server, "first"), election(&server, "second"));
        let acquired = first.acquire().await;
        let start = Instant::now();
        second.acquire().await;
        let waited = start.elapsed().as_secs();
        assert!((15..22).contains(&waited), "{waited}");
        assert!(matches!(
            first.keep(acquired).await,
            Lost::NotRenewed(..) | Lost::Taken(_)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_cannot_renew_stops_before_another_may_start() {
        for (refuses, is_mute, expected) in [
            (Some(429), false, true),
            (Some(500), false, true),
            (None, true, true),
        ] {
            let server = Arc::new(Mutex::new(Server::default()));
            let mut first = election(&server, "first");
            let acquired = first.acquire().await;
            {
                let mut server = server.lock().expect("unpoisoned");
                (server.refuses, server.is_mute) = (refuses, is_mute);
            }
            let lost = first.keep(acquired).await;
            assert_eq!(matches!(lost, Lost::NotRenewed(..)), expected, "{lost}");
            assert!(acquired.elapsed() <= Terms::default().lease - Terms::default().retry);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_was_taken_away_is_noticed_at_the_next_renewal() {
        let server = Arc::new(Mutex::new(Server::default()));
        let mut first = election(&server, "first");
        let acquired = first.acquire().await;
        {
            let mut server = server.lock().expect("unpoisoned");
            server.version += 1;
            let version = server.version.to_string();
            let lease = server.lease.as_mut().expect("a lease");
            lease["metadata"]["resourceVersion"] = version.into();
            lease["spec"]["holderIdentity"] = "usurper".into();
        }
        let lost = first.keep(acquired).await;
        assert_eq!(lost.to_string(), "usurper has taken the lease");
        assert!(acquired.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_server_that_takes_five_seconds_an_answer_is_quick_enough() {
        let server = Arc::new(Mutex::new(Server {
            takes: Duration::from_secs(5),
            ..Server::default()
        }));
        let mut first = election(&server, "first");
        let acquired = timeout(Duration::from_secs(12), first.acquire())
            .await
            .expect("taken");
        let kept = timeout(Duration::from_secs(600), first.keep(acquired)).await;
        assert!(kept.is_err(), "{kept:?}");
    }
}
