"""Meaning of column names, in the spellings and languages of shops' exports: `CustomerID`, `Kunden-Nr.`.

A name is taken apart into words (`orderDate` is two), without case, accents and signs. Ids are recognised as the word
for a thing with or without a word for its number (`artikelnummer`, `id_producto`, `StockCode`), so that no list of
whole names is needed.
"""

from __future__ import annotations

import re
import unicodedata


def _listed(names: str) -> tuple[str, ...]:
    return tuple(names.split())


USER_NAMES = _listed(
    "userid user uid customerid customer custid clientid client memberid member accountid account buyerid buyer "
    "shopperid shopper subscriberid reviewerid reviewer viewerid readerid listenerid playerid profileid personid "
    "person visitorid visitor username deviceid cookieid sessionid session queryid qid questionid query who"
)
"""Names of users' ids, without signs; those that come first are preferred."""
ITEM_NAMES = _listed(
    "itemid item iid productid product parentasin asin sku articleid article movieid movie filmid bookid book isbn "
    "trackid track songid song albumid artistid videoid video showid gameid game appid newsid documentid docid "
    "passageid corpusid postid listingid listing offerid adid recipeid courseid jobid businessid contentid variantid "
    "document what"
)
"""The same of items."""
TIME_NAMES = _listed(
    "timestamp ts time datetime unixtime unixreviewtime unix eventtime eventtimestamp ordertimestamp ratingtimestamp "
    "orderdate purchasedate purchasetimestamp invoicedate createdat created purchasedat reviewtime reviewdate date day "
    "when t dt epoch timems"
)
"""The same of times."""
CLOCK_NAMES = _listed("timestamp ts unixtime")
"""Times whatever their size: a counter, too, says what came first."""
POSITION_NAMES = _listed("position pos sequence seq step eventorder itemorder idx index")
TEXT_NAMES = _listed("text query question body content passage document abstract description title")
TITLE_NAMES = _listed(
    "title name producttitle productname itemname itemtitle movietitle booktitle headline label titel produktname "
    "artikelname bezeichnung artikelbezeichnung titre nomproduit designation nom titulo nombre nombreproducto titolo "
    "商品名 商品名称 产品名称 标题 タイトル"
)

_USERS = (
    "user utilisateur usuario benutzer nutzer utente gebruiker uzytkownik bruger anvandare customer cust kunde kunden "
    "kund client cliente klant klient zakaznik member mitglied membre miembro account konto compte cuenta conta buyer "
    "kaufer kaeufer besteller acheteur comprador acquirente shopper subscriber reviewer viewer reader listener player "
    "profile person visitor device cookie session 用户 会员 客户 买家 顧客 会員 ユーザー"
)
_ITEMS = (
    "item product produkt produit producto produto prodotto produktu tuote vare artikel article articulo artigo "
    "articolo artykul sku skuid asin parentasin isbn isbn10 isbn13 ean gtin upc barcode ware merchandise movie film "
    "book buch livre libro track song album video game app document listing offer recipe course content variant "
    "material 商品 产品 货品 アイテム"
)
_NUMBERS = (
    "id ids nr no num number numbers nummer numero nro numer code kod kode codigo cod codice key ref reference "
    "n referencia referenz uid uuid guid sk pk identifier kennung kennzahl 编号 编码 番号 コード"
)
_BETWEEN = "of de des del der do da di pseudo anonymous anon unique external internal global"
_TIMES = (
    "timestamp ts time times datetime date dates day datum dato zeit zeitpunkt zeitstempel uhrzeit fecha data hora "
    "heure jour dia giorno czas epoch unix dt when at 时间 日期 日時 日付 購入日 注文日 下单时间"
)
_MOMENTS = (
    "order ordered purchase purchased buy bought invoice sale sold transaction event rating rated review reviewed "
    "click view viewed watched listened visit created placed interaction kauf bestell bestellung rechnung rechnungs "
    "beleg auftrag auftrags achat commande facture compra pedido factura acquisto ordine fattura zakupu "
    "zamowienia 下单 购买 "
    "注文 購入"
)
_TIME_WORDS, _MOMENT_WORDS = frozenset(_listed(_TIMES)), frozenset(_listed(_MOMENTS))
_OTHER_MOMENTS = frozenset(
    _listed(
        "update updated modified delivery delivered estimated ship shipped shipping due fulfilled paid payment "
        "approved "
        "cancelled canceled refunded closed end ended limit valid login signup registered joined"
    )
)
_NO_MOMENTS = frozenset(
    _listed("birth birthday born dob age expiry expires expiration release released publication published launch")
)
_RATED = "user book movie film product item review overall star customer produkt artikel article produit producto my"
_RATINGS = (
    "rating ratings stars star score scores grade rate overall bewertung note puntuacion calificacion valoracion "
    "valutazione voto punteggio ocena 评分 評価"
)
_QUANTITIES = frozenset(
    _listed(
        "quantity quantities qty qte quantite menge anzahl stueck stuck stueckzahl cantidad cant quantita quantidade "
        "antal aantal ilosc units unitssold unit_count pieces pcs 数量"
    )
)
_STOCK = frozenset(
    _listed(
        "stock instock inventory availability available onhand lagerbestand bestand lager verfugbar verfuegbar "
        "verfugbarkeit existencias inventario disponible disponibilite disponibilidad giacenza disponibilita voorraad "
        "lagersaldo soldout 库存 在庫"
    )
)
LOOKS_LIKE_CODE = frozenset(
    _listed("id code isbn isbn13 ean upc gtin sku asin number no nr uuid guid zip postcode plz nummer numero codigo")
)


def words_of_name(name: str) -> list[str]:
    """Return the words of a column's name: `avgRating`, `avg_rating` and `avg-rating` are the same two.

    Example:
        >>> words_of_name("orderDate"), words_of_name("Réf. client")
        (['order', 'date'], ['ref', 'client'])
    """
    return re.findall(r"[^\W_]+", _plain(re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)))


def bare_name(name: str) -> str:
    """Return a column's name as one word: letters and digits, without case and accents.

    Example:
        >>> bare_name("Customer ID"), bare_name("Größe")
        ('customerid', 'grosse')
    """
    return re.sub(r"[\W_]", "", _plain(name))


def _plain(name: str) -> str:
    apart = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", name))
    return unicodedata.normalize("NFKC", apart.casefold())


def _any(names: str) -> str:
    return "|".join(sorted(_listed(names), key=len, reverse=True))


def _ids_of(things: str) -> re.Pattern[str]:
    """Return the pattern of a thing's id as one word: the thing, with its number before or behind it, or neither."""
    number, between = _any(_NUMBERS), _any(_BETWEEN)
    return re.compile(rf"(?:{number})?(?:{between})?(?:{_any(things)})s?(?:{between})?(?:{number})?")


_USER_ID = _ids_of(_USERS)
_ITEM_ID = re.compile(
    rf"{_ids_of(_ITEMS).pattern}|(?:line)?(?:{_any(_ITEMS)})sku|stock(?:code|number|no|nr)|parts?(?:number|no|nr)"
)
_TIME = re.compile(rf"(?:{_any(_MOMENTS)})?s?(?:{_any(_TIMES)})+(?:utc|gmt|ms|millis|s|seconds|us|micros|ns)?")
_RATING = re.compile(rf"(?:{_any(_RATED)})?s?(?:{_any(_RATINGS)})(?:value|score)?")


_FIRST_OF_THE_VAGUE = {USER_NAMES: "personid", ITEM_NAMES: "newsid"}
"""What may be about something else, such as a session, comes after `kundennummer`."""


def user_rank(name: str) -> int | None:
    """Return how well a name says who: the lower the better, None where it does not."""
    return _id_rank(name, USER_NAMES, _USER_ID, last=("email", "mail"))


def item_rank(name: str) -> int | None:
    """Return how well a name says what: the lower the better, None where it does not."""
    return _id_rank(name, ITEM_NAMES, _ITEM_ID)


def _id_rank(name: str, listed: tuple[str, ...], pattern: re.Pattern[str], last: tuple[str, ...] = ()) -> int | None:
    bare = bare_name(name)
    if bare in listed:
        return listed.index(bare)
    if pattern.fullmatch(bare):
        return listed.index(_FIRST_OF_THE_VAGUE[listed])
    return len(listed) + 1 if set(last) & set(words_of_name(name)) else None


def time_rank(name: str) -> int | None:
    """Return how well a name says when it happened: the lower the better, None where it does not."""
    bare, words = bare_name(name), words_of_name(name)
    if not words or set(words) & _NO_MOMENTS:
        return None
    if bare in TIME_NAMES:
        return TIME_NAMES.index(bare)
    times = set(words) & _TIME_WORDS
    is_moment = bool(set(words) & _MOMENT_WORDS) or any(bare.startswith(one) for one in _MOMENT_WORDS)
    if not (_TIME.fullmatch(bare) or words[-1] in _TIME_WORDS or (times and is_moment)):
        return None
    return len(TIME_NAMES) + (2 if set(words) & _OTHER_MOMENTS else 0 if is_moment else 1)


def is_other_moment(name: str) -> bool:
    """Return whether a name says that it is the time of something else: an update, a delivery, a birth."""
    return bool(set(words_of_name(name)) & (_OTHER_MOMENTS | _NO_MOMENTS))


def is_rating(name: str) -> bool:
    """Return whether a name says how much something was liked."""
    return bool(_RATING.fullmatch(bare_name(name)))


def is_quantity(name: str) -> bool:
    """Return whether a name says how many were bought."""
    return bare_name(name) in _QUANTITIES or bool(_QUANTITIES & set(words_of_name(name)))


def is_stock(name: str) -> bool:
    """Return whether a name says what is there today, which at the time of a sale was something else."""
    words = words_of_name(name)
    is_code = bool(words) and words[-1] in LOOKS_LIKE_CODE
    return not is_code and (bare_name(name) in _STOCK or bool(_STOCK & set(words)))


def may_be_ids(name: str) -> bool:
    """Return whether a column's name says ids or codes, so that a file is read with their spelling kept."""
    return looks_like_code(name) or user_rank(name) is not None or item_rank(name) is not None


def looks_like_code(name: str) -> bool:
    """Return whether a column's name says that its numbers only name things, so that their spelling counts."""
    words = words_of_name(name)
    return bool(words) and words[-1] in LOOKS_LIKE_CODE | {"version", "release", "model"}
