//! The world in one process: virtual clients, a virtual clock and weather
