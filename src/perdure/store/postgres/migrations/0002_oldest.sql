-- oldest: 1
-- Which version of the schema a perdure has to know, at least, to go on using this one.

ALTER TABLE perdure.migrations ADD COLUMN oldest integer NOT NULL DEFAULT 0;
