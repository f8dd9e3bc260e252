//! The time as a template may write it: `strftime_now`.

use std::fmt::Write;

use crate::system;

/// A moment on the clock of this place, in seconds since the beginning of 1970 by that clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub seconds: i64,
    pub micros: u32,
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

impl Moment {
    pub(super) fn now() -> Moment {
        let (seconds, micros) = system::local_time();
        Moment { seconds, micros }
    }

    /// Year, month and day from 1, and the day of the year from 0.
    fn date(self) -> (i64, i64, i64, i64) {
        // Days since the 1st of March of the year 0, of which each four centuries have as many.
        let days = self.seconds.div_euclid(86_400) + 719_468;
        let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let date = of_year - (153 * month + 2) / 5 + 1;
        let (month, year) = if month < 10 { (month + 3, year) } else { (month - 9, year + 1) };
        let year = year + era * 400;
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before = if month > 2 { 59 + i64::from(leap) + of_year } else { of_year - 306 };
        (year, month, date, before)
    }

    /// Python's `strftime` in the C locale; the directive that it does not know is the error.
    pub(super) fn strftime(self, format: &str) -> Result<String, char> {
        let (year, month, date, of_year) = self.date();
        let weekday = (self.seconds.div_euclid(86_400) + 4).rem_euclid(7);
        let second = self.seconds.rem_euclid(86_400);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let of_half = (hour + 11) % 12 + 1;
        let (day_name, month_name) = (DAYS[weekday as usize], MONTHS[month as usize - 1]);
        let half = if hour < 12 { "AM" } else { "PM" };
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut next = chars.next();
            let flag = next.filter(|c| matches!(c, '-' | '_' | '0'));
            if flag.is_some() {
                next = chars.next();
            }
            let mut number = |value: i64, width: usize, fill: char| {
                let _ = match flag.unwrap_or(fill) {
                    '-' => write!(out, "{value}"),
                    '_' => write!(out, "{value:width$}"),
                    _ => write!(out, "{value:0width$}"),
                };
            };
            let Some(next) = next else { return Err('%') };
            match next {
                'd' => number(date, 2, '0'),
                'e' => number(date, 2, '_'),
                'm' => number(month, 2, '0'),
                'y' => number(year.rem_euclid(100), 2, '0'),
                'Y' => number(year, 1, '0'),
                'C' => number(year.div_euclid(100), 2, '0'),
                'H' => number(hour, 2, '0'),
                'k' => number(hour, 2, '_'),
                'I' => number(of_half, 2, '0'),
                'l' => number(of_half, 2, '_'),
                'M' => number(minute, 2, '0'),
                'S' => number(second, 2, '0'),
                'f' => number(self.micros.into(), 6, '0'),
                'j' => number(of_year + 1, 3, '0'),
                'w' => number(weekday, 1, '0'),
                'u' => number((weekday + 6) % 7 + 1, 1, '0'),
                'U' => number((of_year + 7 - weekday) / 7, 2, '0'),
                'W' => number((of_year + 7 - (weekday + 6) % 7) / 7, 2, '0'),
                'a' => out.push_str(&day_name[..3]),
                'A' => out.push_str(day_name),
                'b' | 'h' => out.push_str(&month_name[..3]),
                'B' => out.push_str(month_name),
                'p' => out.push_str(half),
                'P' => out.push_str(&half.to_lowercase()),
                'n' => out.push('\n'),
                't' => out.push('\t'),
                '%' => out.push('%'),
                // A clock without a zone has no name and no offset.
                'z' | 'Z' => {}
                'D' | 'x' => out += &self.strftime("%m/%d/%y")?,
                'F' => out += &self.strftime("%Y-%m-%d")?,
                'T' | 'X' => out += &self.strftime("%H:%M:%S")?,
                'R' => out += &self.strftime("%H:%M")?,
                'r' => out += &self.strftime("%I:%M:%S %p")?,
                'c' => out += &self.strftime("%a %b %e %H:%M:%S %Y")?,
                other => return Err(other),
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_pythons_strftime() {
        let all = "%a %A %b %B %d %e %-d %m %-m %y %Y %C %H %k %I %l %M %S %f %j %w %u %U %W %p %P %D %F %T %R %r %c %x %X %%%z";
        // What datetime.strftime of Python 3.11 prints in the C locale.
        let table = [
            (
                1_785_491_769,
                "Fri Friday Jul July 31 31 31 07 7 26 2026 20 09  9 09  9 56 09 000042 212 5 5 30 30 AM am 07/31/26 2026-07-31 09:56:09 09:56 09:56:09 AM Fri Jul 31 09:56:09 2026 07/31/26 09:56:09 %",
            ),
            (
                951_868_799,
                "Tue Tuesday Feb February 29 29 29 02 2 00 2000 20 23 23 11 11 59 59 000042 060 2 2 09 09 PM pm 02/29/00 2000-02-29 23:59:59 23:59 11:59:59 PM Tue Feb 29 23:59:59 2000 02/29/00 23:59:59 %",
            ),
            (
                -1,
                "Wed Wednesday Dec December 31 31 31 12 12 69 1969 19 23 23 11 11 59 59 000042 365 3 3 52 52 PM pm 12/31/69 1969-12-31 23:59:59 23:59 11:59:59 PM Wed Dec 31 23:59:59 1969 12/31/69 23:59:59 %",
            ),
        ];
        for (seconds, want) in table {
            assert_eq!(Moment { seconds, micros: 42 }.strftime(all).as_deref(), Ok(want));
        }
        assert_eq!(Moment { seconds: 0, micros: 0 }.strftime("%Q"), Err('Q'));
        assert_eq!(Moment { seconds: 0, micros: 0 }.strftime("%"), Err('%'));
    }
}
