//! What an agent counts, as Prometheus would read it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::lab::Lab;

/// Where an agent answers, in its node's namespace.
const ADDRESS: &str = "127.0.0.1:9964";

/// Asks the agent of a node for a path, as Prometheus or a kubelet would: the answer's code and text.
pub fn get(lab: &Lab, node: &str, path: &str) -> Result<(u16, String)> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
    let answer = lab
        .namespace(node)
        .within(|| {
            let mut stream = TcpStream::connect(ADDRESS).context("cannot connect")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
        .with_context(|| format!("{path} of {node}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .with_context(|| format!("no code: {head}"))?;
    Ok((code, body.to_owned()))
}

/// The values of one scrape, by name and labels as they are written.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Asks the agent of a node.
    pub fn of(lab: &Lab, node: &str) -> Result<Self> {
        let (code, body) = get(lab, node, "/metrics")?;
        ensure!(code == 200, "{code}: {body}");
        Ok(Self::parse(&body))
    }

    fn parse(body: &str) -> Self {
        let value = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(
            body.lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(value)
                .collect(),
        )
    }

    /// All values of a metric, by its name with the labels as they are written.
    pub fn series(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        let named = move |series: &str| series.split('{').next() == Some(name);
        let all = self.0.iter().map(|(series, value)| (series.as_str(), *value));
        all.filter(move |(series, _)| named(series))
    }

    /// The sum of a metric's values of which the labels contain `label`, such as `lane="native"`; all for an empty one.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.series(name)
            .filter(|(series, _)| series.contains(label))
            .map(|(_, value)| value)
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_summed_by_name_and_label() {
        let scrape = Scrape::parse(
            "# TYPE a counter\na_total{lane=\"native\"} 2\na_total{lane=\"vxlan:8472:1\"} 3\nab_total 7\n# EOF\n",
        );
        assert_eq!(scrape.sum("a_total", ""), 5.0);
        assert_eq!(scrape.sum("a_total", "native"), 2.0);
        assert_eq!(scrape.sum("ab_total", ""), 7.0);
    }
}
