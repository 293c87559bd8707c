"""From rows with addresses to rows with pictures, each row once: what a preparation and a preview share."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing

from components.prepare_data.near_duplicates import fingerprint
from components.prepare_data.picture_store import PictureStore
from components.prepare_data.pictures import Places, Prepared, Wanted, stream_pictures
from components.prepare_data.workspace import Workspace
from fovea.fetch.profiles import FetchProfile
from fovea.images import PictureLimits
from fovea.records import sha256_digest

PICTURE_LIMITS = PictureLimits()


def fetch_pictures(
    workspace: Workspace,
    places: Places,
    *,
    profile: FetchProfile,
    store: PictureStore | None,
    longest_side: int,
    concurrency: int,
    progress: Callable[[int, int], None],
    seconds: float | None = None,
) -> None:
    """Bring the kept rows' pictures into the workspace, and leave out the rows that have none.

    Args:
        workspace: Its rows have been read.
        places: Where their addresses lead.
        profile: Which hosts may be reached, and how.
        store: Keeps what was fetched; None to keep nothing.
        longest_side: Larger pictures are scaled down to this many pixels.
        concurrency: How many are fetched at the same time.
        progress: Called with how many are done, and of how many.
        seconds: End after about so long, and forget the rows whose pictures are not there by then. None to
            wait for all.

    Raises:
        UserError: none of the first pictures could be used, or S3 refuses.
    """
    db = workspace.db
    (total,) = db.execute("SELECT count(DISTINCT address) FROM rows WHERE reason IS NULL").fetchone()
    end = time.monotonic() + seconds if seconds is not None else float("inf")
    wanted = (item for item in _addresses(workspace) if time.monotonic() < end)
    with closing(
        stream_pictures(
            wanted,
            places,
            profile=profile,
            store=store,
            fingerprint=fingerprint,
            longest_side=longest_side,
            limits=PICTURE_LIMITS,
            concurrency=concurrency,
        )
    ) as pictures:
        for done, picture in enumerate(pictures, start=1):
            if isinstance(picture, Prepared):
                workspace.add_picture(
                    picture.address,
                    digest=picture.digest,
                    jpeg=picture.jpeg,
                    size=(picture.width, picture.height),
                    original_size=(picture.original_width, picture.original_height),
                    fingerprint=picture.fingerprint,
                )
            else:
                workspace.add_unusable_picture(picture.address, picture.reason, picture.detail)
            progress(done, total)
            if time.monotonic() > end:
                break
    if seconds is not None:
        db.execute("DELETE FROM rows WHERE reason IS NULL AND address NOT IN (SELECT address FROM pictures)")
    db.execute(
        "UPDATE rows SET reason = 'picture_' || pictures.reason FROM pictures "
        "WHERE rows.address = pictures.address AND rows.reason IS NULL AND pictures.reason IS NOT NULL"
    )


def drop_duplicates(workspace: Workspace) -> None:
    """Give every kept row its ``row_id``, and keep the first of those that are the same."""

    def identity(product: str, digest: str, values: str, currency: str | None) -> str:
        # All that makes a row what it is: a larger feed does not change it.
        found = sha256_digest([product, digest, json.loads(values), currency])
        return found.removeprefix("sha256:")[:24]

    db = workspace.db
    db.create_function("identity", 4, identity, deterministic=True)
    db.execute(
        'UPDATE rows SET row_id = identity(product, digest, "values", currency) FROM pictures '
        "WHERE rows.address = pictures.address AND rows.reason IS NULL"
    )
    db.execute(
        "UPDATE rows SET reason = 'duplicate' FROM ("
        "  SELECT number AS again, row_number() OVER (PARTITION BY row_id ORDER BY number) AS place"
        "  FROM rows WHERE reason IS NULL"
        ") WHERE number = again AND place > 1"
    )


def _addresses(workspace: Workspace) -> Iterator[Wanted]:
    """Yield the kept rows' pictures, each once, in the source's order."""
    found = workspace.db.execute(
        "SELECT address FROM rows WHERE reason IS NULL GROUP BY address ORDER BY min(number)"
    )
    for (address,) in found:
        yield Wanted(address, workspace.original(address))
