
# Databases of other languages: names are lower-cased by the rules of ASCII, and money is
# written as in the C locale, whoever records the event.

use strict;
use warnings;

use FindBin;
use lib "$FindBin::RealBin/lib";
use NotifyEvents;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# The server gets its own locales: the system may have none but C.
my $locales = PostgreSQL::Test::Utils::tempdir;
foreach my $locale (qw(tr_TR en_GB))
{
	system_log('localedef', '-i', $locale, '-f', 'UTF-8', "$locales/$locale.UTF-8");
	-d "$locales/$locale.UTF-8"
	  or plan skip_all => 'localedef cannot make locales here';
}
local $ENV{LOCPATH} = $locales;

my $node = new_server('recorded', 'pg_notify_events.announce = off', "lc_monetary = 'en_GB.UTF-8'");

$node->safe_psql('postgres',
	"CREATE DATABASE ankara TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'tr_TR.UTF-8' LC_CTYPE 'tr_TR.UTF-8'"
);
$node->safe_psql(
	'ankara', q(
	CREATE EXTENSION pg_notify_events;
	CREATE TYPE price_range AS RANGE (subtype = money);
	CREATE TYPE prices AS (price money);
	CREATE TABLE "INVOICES" (id integer, price money, many money[], span price_range, prices prices);
	CREATE TRIGGER notify AFTER INSERT ON "INVOICES" FOR EACH ROW EXECUTE FUNCTION notify_event();
	CREATE TYPE deal AS ENUM ('small');
	CREATE FUNCTION to_json(deal) RETURNS json LANGUAGE sql AS 'SELECT to_json(2::money::text)';
	CREATE CAST (deal AS json) WITH FUNCTION to_json(deal);
	CREATE TABLE "ÄIDEAS" (d deal);
	CREATE TRIGGER notify AFTER INSERT ON "ÄIDEAS" FOR EACH ROW EXECUTE FUNCTION notify_event();
));

is($node->safe_psql('ankara', q(SELECT lower('I') <> 'i', 1234.5::money::text <> '$1,234.50')),
	't|t', 'the locales are those of other languages');

my $record = '{"id": 1, "many": ["$1.00"], "span": "[$1.00,$2.00)", "price": "$1,234.50", "prices": {"price": "$1.00"}}';
foreach my $locale ('en_GB.UTF-8', 'C', 'POSIX', 'tr_TR.UTF-8')
{
	is( $node->safe_psql(
			'ankara', qq(
			SET lc_monetary = '$locale';
			INSERT INTO "INVOICES"
				SELECT 1, 1234.5::money, array[1::money], price_range(1::money, 2::money), ROW(1::money)::prices;
			INSERT INTO "ÄIDEAS" VALUES ('small');
			SELECT event_name, event_data -> 'new' FROM notification_events ORDER BY id;
			SHOW lc_monetary;
			TRUNCATE notification_events;
		)),
		"public.invoices.insert|$record\npublic.Äideas.insert|{\"d\": \"\$2.00\"}\n$locale",
		"names and money are the same with lc_monetary = $locale");
}

$node->stop;
done_testing();
