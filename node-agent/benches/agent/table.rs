//! Figures in a plain table.

use std::time::Duration;

/// Prints the table's head.
pub(crate) fn head(title: &str) {
    println!(
        "\n{title}\n{:<58} {:>5} {:>10} {:>10} {:>10}  goal",
        "", "runs", "min", "median", "p99"
    );
}

/// Prints a line of times.
pub(crate) fn times(what: &str, mut samples: Vec<Duration>, goal: &str) {
    samples.sort();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
    let ms = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
    println!(
        "{what:<58} {:>5} {:>10} {:>10} {:>10}  {goal}",
        samples.len(),
        ms(samples[0]),
        ms(at(0.5)),
        ms(at(0.99))
    );
}

/// Prints a line with one figure.
pub(crate) fn figure(what: &str, value: &str, goal: &str) {
    println!("{what:<58} {:>5} {value:>32}  {goal}", "");
}
