"""MovieLens, in both of the forms that GroupLens ships."""

import gzip

import pytest
from shops import write

from tiger_jax.data.readers.movielens import MovielensConfig
from tiger_jax.data.readers.raw_source import find_source
from tiger_jax.errors import InputError

MOVIES_CSV = (
    "movieId,title,genres\n"
    '1,"American President, The (1995)",Comedy|Romance\n'
    "2,Léon (1994),(no genres listed)\n"
)
RATINGS_CSV = "userId,movieId,rating,timestamp\n1,2,0.5,100\n1,1,5.0,50\n"
MOVIES_DAT = "1::American President, The (1995)::Comedy|Romance\n2::Léon (1994)::\n"
RATINGS_DAT = "1::2::1::100\n1::1::5::50\n"
EXPECTED_ITEMS = [
    {
        "item_id": "1",
        "title": "American President, The (1995)",
        "brand": "",
        "price": None,
        "categories": [["Comedy"], ["Romance"]],
    },
    {
        "item_id": "2",
        "title": "Léon (1994)",
        "brand": "",
        "price": None,
        "categories": [],
    },
]
EXPECTED_EVENTS = [
    {"user_id": "1", "item_id": "2", "timestamp": 100.0},
    {"user_id": "1", "item_id": "1", "timestamp": 50.0},
]


def read(folder, **config):
    source = find_source(folder, configs=[MovielensConfig(**config)])
    assert source.kind == "movielens"
    return source.read()


def test_csv_files_are_read(tmp_path):
    write(tmp_path / "movies.csv", MOVIES_CSV)
    write(tmp_path / "ratings.csv", RATINGS_CSV)
    write(tmp_path / "tags.csv", "userId,movieId,tag,timestamp\n")
    shop = read(tmp_path)
    assert shop.items.to_pylist() == EXPECTED_ITEMS
    assert shop.interactions.to_pylist() == EXPECTED_EVENTS


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_dat_files_are_read_in_either_encoding(tmp_path, encoding, ending):
    pack = gzip.compress if ending else bytes
    write(tmp_path / f"movies.dat{ending}", pack(MOVIES_DAT.encode(encoding)))
    write(tmp_path / f"ratings.dat{ending}", pack(RATINGS_DAT.encode()))
    shop = read(tmp_path)
    assert shop.items.to_pylist() == EXPECTED_ITEMS
    assert shop.interactions.to_pylist() == EXPECTED_EVENTS


def test_every_rating_counts_unless_a_least_one_is_set(tmp_path):
    write(tmp_path / "movies.csv", MOVIES_CSV)
    write(tmp_path / "ratings.csv", RATINGS_CSV)
    shop = read(tmp_path, min_rating=4.0)
    assert shop.interactions.to_pylist() == EXPECTED_EVENTS[1:]
    assert shop.notes == (
        "ratings.csv: 1 of 2 interactions are rated below 4 and left out",
    )


def test_bad_files_name_the_line(tmp_path):
    write(tmp_path / "movies.dat", MOVIES_DAT)
    write(tmp_path / "ratings.dat", RATINGS_DAT + "2::1::3\n")
    with pytest.raises(InputError, match="ratings.dat, line 3: 3 fields"):
        read(tmp_path)
    write(tmp_path / "ratings.dat", "")
    with pytest.raises(InputError, match="ratings.dat"):
        read(tmp_path)
    write(tmp_path / "ratings.dat", "\n1::9::5::50\n")
    with pytest.raises(InputError, match="ratings.dat, line 2: item '9' is not in"):
        read(tmp_path)
    write(tmp_path / "movies.dat", "\n")
    with pytest.raises(InputError, match="movies.dat has no rows"):
        read(tmp_path)


def test_a_missing_column_is_named_unless_it_only_describes(tmp_path):
    write(tmp_path / "movies.csv", "movieId,title\n1,A\n2,B\n")
    write(tmp_path / "ratings.csv", RATINGS_CSV)
    assert read(tmp_path).items["categories"].to_pylist() == [[], []]
    write(tmp_path / "movies.csv", "film,title\n1,A\n")
    with pytest.raises(InputError, match="movies.csv has no column 'movieId'"):
        read(tmp_path)


def test_copies_may_have_names_of_their_own(tmp_path):
    header = "movie_id;Title;Genres\n"
    rows = "1;American President, The (1995);['Comedy', 'Romance']\n2;Léon (1994);\n"
    write(tmp_path / "movies.csv", header + rows)
    header = "UserID;MovieID;Rating;Timestamp\n"
    write(tmp_path / "ratings.csv", header + "1;2;0.5;100\n1;1;5;50\n")
    shop = read(tmp_path, min_rating=4.0)
    assert shop.items.to_pylist() == EXPECTED_ITEMS
    assert shop.interactions.to_pylist() == EXPECTED_EVENTS[1:]


def test_100k_is_read_with_its_flags_of_genres(tmp_path):
    flags = ["0"] * 19
    film = "{}|{}|01-Jan-1995||http://us.imdb.com/M?x|{}\n"
    comedy, unknown = list(flags), list(flags)
    comedy[5] = comedy[14] = "1"
    unknown[0] = "1"
    rows = film.format(1, "American President, The (1995)", "|".join(comedy))
    rows += film.format(2, "Léon (1994)", "|".join(unknown))
    write(tmp_path / "u.item", rows.encode("latin-1"))
    write(tmp_path / "u.data", "1\t2\t1\t100\n1\t1\t5\t50\n")
    write(tmp_path / "u.genre", "unknown|0\nAction|1\n\n")
    shop = read(tmp_path)
    assert shop.items.to_pylist() == EXPECTED_ITEMS
    assert shop.interactions.to_pylist() == EXPECTED_EVENTS


def test_the_20m_of_other_hosts_has_dates_for_times(tmp_path):
    write(tmp_path / "movie.csv", MOVIES_CSV)
    ratings = '"userId","movieId","rating","timestamp"\n1,2,3.5,"2005-04-02 23:53:47"\n'
    write(tmp_path / "rating.csv", ratings)
    assert read(tmp_path).interactions["timestamp"].to_pylist() == [1112486027.0]


def test_unknown_films_name_the_option_of_this_reader(tmp_path):
    write(tmp_path / "movies.csv", MOVIES_CSV)
    write(tmp_path / "ratings.csv", RATINGS_CSV + "1,99,3,7\n")
    with pytest.raises(InputError, match=r"--gin\.movielens\.MovielensConfig\.unknown"):
        read(tmp_path)
