//! A read-only real-time clock: the time registers of the MC146818 at ports 0x70 and 0x71, in UTC.
//!
//! Without it Linux waits a second for the update-in-progress flag of an absent clock to clear. There is no alarm,
//! no interrupt, no CMOS memory, and setting the clock has no effect.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::bus::BusDevice;

/// Index port; the data port follows.
pub const PORT: u16 = 0x70;
/// Number of ports.
pub const PORT_LEN: u16 = 2;

/// Bit 7 of the index port gates the NMI on a PC.
const INDEX_MASK: u8 = 0x7f;
/// Register A: 32.768 kHz time base, 1024 Hz rate, no update in progress.
const REGISTER_A: u8 = 0x26;
/// Register B: 24 hours, BCD.
const REGISTER_B: u8 = 0x02;
/// Register D: valid RAM and time.
const REGISTER_D: u8 = 0x80;

/// What a snapshot keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The selected register.
    pub index: u8,
}

/// The clock; it shows the host's `CLOCK_REALTIME`.
pub struct Rtc {
    index: AtomicU8,
}

impl Rtc {
    /// A clock as a snapshot left it.
    pub fn new(state: State) -> Self {
        Self { index: AtomicU8::new(state.index & INDEX_MASK) }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> State {
        State { index: self.index.load(Ordering::Relaxed) }
    }
}

impl BusDevice for Rtc {
    fn name(&self) -> &'static str {
        "RTC"
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, Some(byte)) = (offset, data.first_mut()) {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            *byte = register(self.index.load(Ordering::Relaxed), since_epoch.as_secs());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(index)) = (offset, data.first()) {
            self.index.store(index & INDEX_MASK, Ordering::Relaxed);
        }
    }
}

/// Register `index` at `now`, in seconds since 1970.
fn register(index: u8, now: u64) -> u8 {
    let days = now / 86_400;
    let (year, month, day) = civil(days);
    match index {
        0x00 => bcd(now % 60),
        0x02 => bcd(now / 60 % 60),
        0x04 => bcd(now / 3600 % 24),
        // Sunday is 1; 1970-01-01 was a Thursday.
        0x06 => bcd((days + 4) % 7 + 1),
        0x07 => bcd(day),
        0x08 => bcd(month),
        0x09 => bcd(year % 100),
        0x0a => REGISTER_A,
        0x0b => REGISTER_B,
        0x0d => REGISTER_D,
        0x32 => bcd(year / 100),
        _ => 0,
    }
}

fn bcd(value: u64) -> u8 {
    (value / 10 % 10 * 16 + value % 10) as u8
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01. Counts in years that begin in March and
/// cycles of 400 years, 146,097 days, so that the leap day is the last day of each.
fn civil(days: u64) -> (u64, u64, u64) {
    const MARCH_0000_TO_1970: u64 = 719_468;
    let day = days + MARCH_0000_TO_1970;
    let (cycle, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March on have 31, 30, 31, 30, 31 days, over and over: 153 days in five months.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let after_december = u64::from(month >= 10);
    (cycle * 400 + year + after_december, month + 3 - 12 * after_december, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(rtc: &Rtc, index: u8) -> u8 {
        rtc.write(0, &[index]);
        let mut data = [0];
        rtc.read(1, &mut data);
        data[0]
    }

    #[test]
    fn a_known_moment() {
        // date -u -d '2024-02-29 23:59:58' +%s; a Thursday.
        let registers =
            [0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32].map(|index| register(index, 1_709_251_198));
        assert_eq!(registers, [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20]);
    }

    #[test]
    fn no_update_is_ever_in_progress_and_the_nmi_bit_does_not_select() {
        let rtc = Rtc::new(State::default());
        assert_eq!(read(&rtc, 0x8a) & 0x80, 0);
        assert_eq!(rtc.state(), State { index: 0x0a });
        assert_eq!(read(&rtc, 0x0d), REGISTER_D);
        assert!((0x20..=0x99).contains(&read(&rtc, 0x32)));
    }

    proptest! {
        #[test]
        fn dates_agree_with_the_c_library(days in 0u64..10_000_000) {
            let seconds = (days * 86_400) as i64;
            // SAFETY: tm is plain data, for which zeroes are valid.
            let mut tm: libc::tm = unsafe { std::mem::zeroed() };
            // SAFETY: both pointers are to live locals of the right type.
            unsafe { libc::gmtime_r(&seconds, &mut tm) };
            let expected = (tm.tm_year as u64 + 1900, tm.tm_mon as u64 + 1, tm.tm_mday as u64);
            prop_assert_eq!(civil(days), expected);
        }
    }
}
