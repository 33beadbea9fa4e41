//! A text, and a run that is over in a moment.

use super::Place;

/// All that a tiny run needs but where it goes.
pub const TINY: &str =
    "train --task lm --data text.txt --model gpt:1x2x16 --context 16 --batch 4 --eval-every 10";

/// A text of `words` words of six, a full stop now and then.
pub fn text(words: usize) -> String {
    let list = ["light", "and", "the", "waters", "were", "over"];
    (0..words).fold(String::new(), |text, i| {
        let end = if i % 9 == 8 { ".\n" } else { " " };
        text + list[(i * i + i / 5) % 6] + end
    })
}

/// An empty folder but for `text.txt`.
pub fn place(name: &str) -> Place {
    let place = Place::new(name);
    place.write("text.txt", text(600));
    place
}
