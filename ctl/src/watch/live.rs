//! One line on a terminal that keeps up with the migration.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use throughline_wire::v1::{Migration, MigrationEvent};

use super::{
    report,
    view::{View, summary},
};
use crate::{failure::Failure, output::print, table::printable};

/// How often the line shows that it is alive.
const TICK: Duration = Duration::from_millis(125);

const TEMPLATE: &str = "{spinner} {prefix:9} [{bar:12}] {wide_msg}";

/// The line. It is wiped when this is dropped, whatever ended the watching.
pub(super) struct Live {
    bar: ProgressBar,
}

impl Live {
    pub(super) fn new() -> Self {
        let bar = ProgressBar::with_draw_target(Some(100), ProgressDrawTarget::stdout());
        let style = ProgressStyle::with_template(TEMPLATE);
        // A test checks the template; a style that cannot be had is no reason not to watch.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(TICK);
        Self { bar }
    }
}

impl View for Live {
    fn event(&mut self, event: &MigrationEvent) -> Result<(), Failure> {
        let Some(migration) = &event.migration else { return Ok(()) };
        self.bar.set_prefix(report::phase(migration));
        if let Some(progress) = &migration.progress {
            self.bar.set_position(report::percent(progress));
        }
        match (printable(&event.message), &migration.progress) {
            (message, _) if !message.is_empty() => self.bar.set_message(message),
            (_, Some(progress)) => self.bar.set_message(report::progress(progress)),
            _ => {}
        }
        Ok(())
    }

    fn notice(&mut self, text: &str) {
        // Nobody is left to tell when stderr is closed.
        self.bar.suspend(|| drop(writeln!(io::stderr(), "{text}")));
    }

    fn end(&mut self, end: &Migration) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        print(&summary(end))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_valid() {
        ProgressStyle::with_template(TEMPLATE).expect("indicatif accepts it");
    }
}
