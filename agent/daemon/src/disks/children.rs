//! A child that is being started has, until it has become its program, all that this process had open: for that instant a file that was
//! closed here is still in use, and its lock taken. Nobody is refused anything for that.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// Longer than a child takes on a busy host.
const INSTANT: Duration = Duration::from_millis(300);
const AGAIN: Duration = Duration::from_millis(2);

/// Tries for as long as that may be why something is in use.
pub(super) fn outlasted<T>(mut attempt: impl FnMut() -> T, is_in_use: impl Fn(&T) -> bool) -> T {
    let began = Instant::now();
    loop {
        let tried = attempt();
        if !is_in_use(&tried) || began.elapsed() >= INSTANT {
            return tried;
        }
        sleep(AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_for_an_instant_is_waited_for_and_what_stays_so_is_told() {
        let mut left = 3;
        let freed = outlasted(
            || {
                left -= 1;
                left
            },
            |left| *left > 0,
        );
        assert_eq!(freed, 0);
        let began = Instant::now();
        assert!(outlasted(|| true, |in_use| *in_use));
        assert!(began.elapsed() >= INSTANT);
    }
}
