//! A guest kept from running is late, and what is late is not lost.

use std::time::Duration;

use anyhow::Result;

use crate::signals;

/// Asks, and while the answer is not `whole` asks again after each `pause`, `times` times at most; the last answer.
pub(crate) fn wait<T>(
    pause: Duration,
    times: u32,
    mut whole: impl FnMut(&T) -> bool,
    mut ask: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut answer = ask()?;
    for _ in 0..times {
        if whole(&answer) {
            break;
        }
        signals::sleep(pause)?;
        answer = ask()?;
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_late_is_waited_for_and_what_does_not_come_is_not() {
        let until_in = |figures: &[u64]| {
            let (mut left, mut asked) = (figures.iter().copied(), 0);
            let last = wait(
                Duration::ZERO,
                4,
                |missing| *missing == 0,
                || {
                    asked += 1;
                    Ok(left.next().unwrap_or_default())
                },
            );
            (last.unwrap(), asked)
        };
        assert_eq!(until_in(&[0]), (0, 1));
        assert_eq!(until_in(&[7, 7, 3, 0]), (0, 4));
        assert_eq!(until_in(&[7; 9]), (7, 5));
    }
}
